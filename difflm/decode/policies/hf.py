"""The policies of the code released with LLaDA2.0 and LLaDA2.1, token for token.

Source: `generate` of the modelling files in the inclusionAI LLaDA2.0 and LLaDA2.1 repositories; semantics and the
settings under which they differ from what one expects: docs/decoding.md. Ties go to the lowest id and position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from difflm.decode.policies.base import Decision, Draft, Proposal, Result, Verdict, threshold_or_top
from difflm.decode.sampling import Greedy, Multinomial, Rule

MAX_FORWARDS = 1024
"""Forwards of one block after which a policy without a bound of its own is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Released:
    """Settings and rules that both releases share.

    Attributes:
        block_length: tokens per block.
        gen_length: tokens to return at most; None takes `SamplingParams.max_new_tokens`. The last block is computed as
            a whole.
        steps: forwards per block at most.
        temperature: of the softmax.
        top_k, top_p: filters; they change the confidence, too. None is without.
        eos_early_stop: end the sequence at an EOS as early as the release does.
        minimal_topk: shortens `steps` to gen_length // minimal_topk, nothing else.
        threshold: masked positions with a confidence strictly above it are filled, if there are enough of them.
        eos_id, mask_id: None takes the model's.
    """

    block_length: int = 32
    gen_length: int | None = None
    steps: int = 32
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    eos_early_stop: bool = False
    minimal_topk: int = 1
    threshold: float = 0.95
    eos_id: int | None = None
    mask_id: int | None = None

    @property
    def mask_is_undecided(self) -> bool:
        """A mask id is a slot: in the prompt's tail, and when the model proposes it."""
        return True

    @property
    def mask_in_prompt(self) -> bool:
        """As in the release: slots in the tail, ordinary ids in whole prompt blocks."""
        return True

    def rule(self, suppressed: tuple[int, ...]) -> Rule:
        """Return the arg-max at temperature 0, else the release's draws."""
        if self.temperature == 0.0:
            return Greedy()
        return Multinomial(self.temperature, self.top_k, self.top_p)

    def result(self, draft: Draft, verdict: Verdict) -> Result:
        """Return the generated tokens up to the limit, cut behind the first EOS."""
        tokens, eos = draft.generated()
        return Result(tokens=tokens, num_tokens=len(tokens), stopped_by=eos)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hf20Greedy(_Released):
    """LLaDA2.0 with the arg-max at temperature 0. Settings: see above.

    Every block has at most `steps` forwards; step s asks for block_length // steps positions, one more in the first
    block_length % steps steps. A masked id that is proposed leaves its position masked: masks can be returned.
    """

    @property
    def max_forwards(self) -> int | None:
        """None: `steps` is the bound."""
        return None

    def _schedule(self, draft: Draft) -> int:
        return min(self.steps, (draft.limit - draft.num_prompt) // self.minimal_topk)

    def places(self, draft: Draft) -> tuple[int, ...]:
        """Return the masked positions; all of the block where the release draws for all of them."""
        return tuple(draft.masked()) if self.temperature == 0.0 else tuple(range(draft.start, draft.stop))

    def decide(self, draft: Draft, places: Sequence[int], proposal: Proposal) -> Decision:
        """Fill what is above the threshold, or the schedule's number of most confident positions."""
        steps, size = self._schedule(draft), draft.stop - draft.start
        quota = size // steps + (draft.steps < size % steps)
        known = dict(zip(places, proposal.confidences, strict=True))
        masked = draft.masked()
        filled, selected_by = threshold_or_top(
            [known[place] for place in masked], masked, threshold=self.threshold, least=quota
        )
        return Decision(filled=filled, selected_by=selected_by)

    def verdict(self, draft: Draft, decision: Decision | None) -> Verdict:
        """End early at a filled EOS with nothing masked before the first one; else at an EOS behind the block."""
        if decision is not None and self.eos_early_stop:
            eos = draft.first_eos(0, draft.stop)
            filled = any(draft.tokens[place] in draft.eos_ids for place in decision.filled)
            if eos is not None and filled and draft.mask_id not in draft.tokens[draft.num_prompt : eos]:
                return "early"
        if draft.steps < self._schedule(draft) and draft.masked():
            return "continue"
        return "next" if draft.first_eos(draft.num_prompt, draft.stop) is None else "end"

    def result(self, draft: Draft, verdict: Verdict) -> Result:
        """Return the generated tokens; an early return ends behind the first EOS of prompt and answer, limit or not."""
        if verdict != "early":
            return _Released.result(self, draft, verdict)
        eos = draft.first_eos(0, draft.stop)
        assert eos is not None, "an early return has an EOS"
        tokens = draft.tokens[draft.num_prompt : eos + 1]
        return Result(
            tokens=tokens, num_tokens=min(len(tokens), draft.limit - draft.num_prompt), stopped_by=draft.tokens[eos]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Hf20(Hf20Greedy):
    """LLaDA2.0 as shipped: temperature 0 samples like 1, and an early return contains the prompt."""

    def rule(self, suppressed: tuple[int, ...]) -> Rule:
        """Return the release's draws at every temperature."""
        return Multinomial(self.temperature, self.top_k, self.top_p)

    def places(self, draft: Draft) -> tuple[int, ...]:
        """Return all positions of the block: the generator is used for decided ones, too."""
        return tuple(range(draft.start, draft.stop))

    def result(self, draft: Draft, verdict: Verdict) -> Result:
        """Return the generated tokens, behind the prompt in an early return (which an EOS of the prompt cuts)."""
        result = Hf20Greedy.result(self, draft, verdict)
        if verdict != "early":
            return result
        prompt = draft.tokens[: draft.num_prompt]
        if not result.tokens:
            prompt = prompt[: (draft.first_eos(0, draft.num_prompt) or 0) + 1]
        return replace(result, tokens=prompt + result.tokens, num_prompt=len(prompt))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hf21(_Released):
    """LLaDA2.1: decided tokens are edited, and a block ends with a forward that changes nothing.

    The release has no bound while masks remain. Here a block whose state repeats, so that it would go on for ever, or
    that reaches `max_forwards`, ends the sequence with the finish reason "stuck". `steps` and `minimal_topk` are
    accepted and unused, as in the release.

    Attributes:
        editing_threshold: a decided, generated token is replaced when another one is proposed with a confidence
            strictly above it; 0 edits at every difference, 1 never.
        max_post_steps: forwards of a block without masks, at most.
        num_to_transfer: positions that have to be above the threshold; the most confident ones otherwise.
        max_forwards: of a block; ours.
    """

    editing_threshold: float = 0.9
    max_post_steps: int = 16
    num_to_transfer: int = 1
    max_forwards: int | None = MAX_FORWARDS

    def places(self, draft: Draft) -> tuple[int, ...]:
        """Return the masked and the generated positions; all of the block where the release draws for all of them."""
        if self.temperature:
            return tuple(range(draft.start, draft.stop))
        return tuple(
            place for place in range(draft.start, draft.stop) if place >= draft.num_prompt or not draft.decided[place]
        )

    def decide(self, draft: Draft, places: Sequence[int], proposal: Proposal) -> Decision:
        """Fill masked positions as 2.0 with a constant schedule; edit the others, also while masks remain."""
        token = dict(zip(places, proposal.tokens, strict=True))
        known = dict(zip(places, proposal.confidences, strict=True))
        masked = draft.masked()
        filled, selected_by = threshold_or_top(
            [known[place] for place in masked], masked, threshold=self.threshold, least=self.num_to_transfer
        )
        return Decision(
            filled=filled,
            selected_by=selected_by,
            edited=edits(draft, token, known, threshold=self.editing_threshold),
        )

    def verdict(self, draft: Draft, decision: Decision | None) -> Verdict:
        """Go on until a forward without masks edits nothing, or until there were `max_post_steps` of them."""
        if draft.masked():
            return "continue"
        settled = decision is not None and not decision.filled and not decision.edited
        if not settled and draft.post < self.max_post_steps:
            return "continue"
        ended = self.eos_early_stop and draft.first_eos(draft.num_prompt, draft.stop) is not None
        return "end" if ended else "next"


def edits(draft: Draft, token: Mapping[int, int], known: Mapping[int, float], *, threshold: float) -> tuple[int, ...]:
    """Return the decided, generated positions that another token takes: proposed with more than the threshold.

    Args:
        draft: the sequence before the forward.
        token: proposal by position.
        known: its confidence.
        threshold: probability; strict.
    """
    return tuple(
        place
        for place in range(max(draft.start, draft.num_prompt), draft.stop)
        if draft.decided[place] and known[place] > threshold and token[place] != draft.tokens[place]
    )
