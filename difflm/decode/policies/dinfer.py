"""The policies of dInfer's parallel decoders: threshold, credit, hierarchy.

Source: `python/dinfer/decoding/parallel_strategy.py` of inclusionAI/dInfer (v0.1 and later); semantics:
docs/decoding.md. Deviations: the answer is cut at its first EOS (the original leaks what follows it in the block), an
EOS in the prompt is ignored, and a loop that can never end is given up. Forwards are counted without unrolling
(`maximum_unroll` = 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from difflm.decode.policies.base import Decision, Draft, Proposal, Result, Verdict
from difflm.decode.policies.hf import MAX_FORWARDS
from difflm.decode.sampling import Gumbel, Rule

NEAR_TIE = 1e-5
LEAST_THRESHOLD = -1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """Positions at or above the threshold, or within 1e-5 of the best; those whose best token is the mask never.

    Attributes:
        block_length: tokens per block; None takes the model's.
        gen_length: tokens to return at most; None takes `SamplingParams.max_new_tokens`.
        threshold: probability, not strict.
        temperature: strength of the Gumbel noise; 0 is the arg-max.
        early_stop: end behind a block with an EOS; else all blocks are decoded and the answer is cut.
        eos_id, mask_id: None takes the model's.
        max_forwards: of a block; ours, as the original has no bound. The finish reason is then "stuck".
    """

    block_length: int | None = None
    gen_length: int | None = None
    threshold: float = 0.9
    temperature: float = 0.0
    early_stop: bool = True
    eos_id: int | None = None
    mask_id: int | None = None
    max_forwards: int | None = MAX_FORWARDS

    @property
    def mask_is_undecided(self) -> bool:
        """A proposed mask leaves its position undecided."""
        return True

    @property
    def mask_in_prompt(self) -> bool:
        """The original would fill it."""
        return False

    def rule(self, suppressed: tuple[int, ...]) -> Rule:
        """Return the arg-max under Gumbel noise."""
        return Gumbel(self.temperature)

    def places(self, draft: Draft) -> tuple[int, ...]:
        """Return the masked positions."""
        return tuple(draft.masked())

    def decide(self, draft: Draft, places: Sequence[int], proposal: Proposal) -> Decision:
        """Fill what reaches the threshold, or nearly the best confidence."""
        known = {
            place: confidence
            for place, token, confidence in zip(places, proposal.tokens, proposal.confidences, strict=True)
            if token != draft.mask_id
        }
        if not known:
            return Decision()
        best = max(known.values())
        least = min(self.threshold, max(best - NEAR_TIE, LEAST_THRESHOLD))
        filled = tuple(place for place in places if known.get(place, -1.0) >= least)
        return Decision(filled=filled, selected_by="threshold" if best >= self.threshold else "top_k")

    def verdict(self, draft: Draft, decision: Decision | None) -> Verdict:
        """Go on while masks are left; then end at an EOS among the generated tokens of the block."""
        if draft.masked():
            return "continue"
        eos = draft.first_eos(max(draft.start, draft.num_prompt), draft.stop)
        return "end" if self.early_stop and eos is not None else "next"

    def result(self, draft: Draft, verdict: Verdict) -> Result:
        """Return the generated tokens up to the limit, cut before the first EOS."""
        tokens, eos = draft.generated()
        return Result(tokens=tokens[: len(tokens) - (eos is not None)], num_tokens=len(tokens), stopped_by=eos)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit(Threshold):
    """`Threshold` over logits that favour tokens which were a masked position's best before.

    Attributes:
        credit_alpha: weight of log(1 + credit) in the logits.
        boost_gamma: exponent of the probability that is credited.
        decay_beta: what is left of a credit after a step.
    """

    credit_alpha: float = 0.7
    boost_gamma: float = 0.2
    decay_beta: float = 0.8

    def rule(self, suppressed: tuple[int, ...]) -> Rule:
        """Return the arg-max of the credited logits under Gumbel noise."""
        return Gumbel(self.temperature, self.credit_alpha, self.boost_gamma, self.decay_beta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy(Threshold):
    """The best position of every run of masks, if above `low_threshold`; those above the threshold; the best of all.

    Both comparisons are strict, and a position whose best token is the mask is not left out.

    Attributes:
        low_threshold: probability.
    """

    low_threshold: float = 0.4

    def decide(self, draft: Draft, places: Sequence[int], proposal: Proposal) -> Decision:
        """Fill the maxima of the runs (all equal ones), the sure positions, and the first best one."""
        known = dict(zip(places, proposal.confidences, strict=True))
        runs: list[list[int]] = []
        for place in places:
            if runs and runs[-1][-1] == place - 1:
                runs[-1].append(place)
            else:
                runs.append([place])
        filled = {max(places, key=lambda place: (known[place], -place))}
        for run in runs:
            best = max(known[place] for place in run)
            if best > self.low_threshold:
                filled |= {place for place in run if known[place] == best}
        high = {place for place in places if known[place] > self.threshold}
        return Decision(filled=tuple(sorted(filled | high)), selected_by="threshold" if high else "top_k")
