"""The native policy: exact, bounded, and never a mask in the answer.

Positions at the limit or behind the first decided EOS are never decided: their rows stay masked and only serve as the
inputs that the model knows from training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from difflm.decode.drawing import Draw
from difflm.decode.events import Selection
from difflm.decode.policies.base import Decision, Draft, Proposal, Result, Verdict
from difflm.diffusion.acceptance import Acceptance, FixedAcceptance, ThresholdAcceptance


@dataclass(frozen=True, slots=True, kw_only=True)
class Native:
    """Threshold acceptance (or another strategy) over proposals that are never MASK or an id without a token.

    Every forward decides at least one position, and the sequence ends at its first EOS once the positions before it
    are decided; the EOS is not returned.

    Attributes:
        block_length: tokens per block; None takes the model's.
        gen_length: tokens to generate at most; None takes `SamplingParams.max_new_tokens`.
        acceptance: which proposals are kept.
        temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias: see
            `difflm.decode.drawing.Draw`; the bias as a mapping.
        min_tokens: positions before this many generated tokens never hold an EOS.
        editing_threshold: a decided token of the current block is replaced when another one is proposed with a
            confidence strictly above it; 0 edits at every difference. None decides each position once.
        max_post_steps: forwards of a block that only edit, at most.
        eos_id, mask_id: None takes the model's.
    """

    block_length: int | None = None
    gen_length: int | None = None
    acceptance: Acceptance = field(default=ThresholdAcceptance(0.95))
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    min_tokens: int = 0
    editing_threshold: float | None = None
    max_post_steps: int = 16
    eos_id: int | None = None
    mask_id: int | None = None

    @property
    def mask_is_undecided(self) -> bool:
        """Positions are decided by being filled, whatever their id."""
        return False

    @property
    def max_forwards(self) -> int | None:
        """None: every forward decides a position."""
        return None

    @property
    def mask_in_prompt(self) -> bool:
        """It could not be told from an undecided position."""
        return False

    def rule(self, suppressed: tuple[int, ...]) -> Draw:
        """Return draws that never give a suppressed id."""
        return Draw(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=tuple(sorted((self.logit_bias or {}).items())),
            suppressed=suppressed,
            entropy=self.acceptance.needs_entropy,
        )

    def places(self, draft: Draft) -> tuple[int, ...]:
        """Return the undecided positions before the limit and the first EOS; with editing, all up to it."""
        end = self._end(draft)
        if self.editing_threshold is None:
            return tuple(place for place in draft.masked() if place < end)
        # The EOS itself can be edited away.
        last = min(end + 1, draft.limit, draft.stop)
        return tuple(range(max(draft.start, draft.num_prompt), last))

    def _open(self, draft: Draft) -> list[int]:
        """Return the undecided positions among those."""
        return [place for place in self.places(draft) if not draft.decided[place]]

    def _end(self, draft: Draft) -> int:
        eos = draft.first_eos(max(draft.start, draft.num_prompt), draft.stop)
        return draft.limit if eos is None else min(eos, draft.limit)

    def decide(self, draft: Draft, places: Sequence[int], proposal: Proposal) -> Decision:
        """Fill what the acceptance keeps, and edit the others."""
        known = [i for i, place in enumerate(places) if not draft.decided[place]]
        entropies = [proposal.entropies[i] for i in known] if proposal.entropies else ()
        taken = self.acceptance([proposal.confidences[i] for i in known], entropies) if known else []
        assert taken or not known, "a denoising forward must decide something"
        return Decision(
            filled=tuple(places[known[i]] for i in taken),
            edited=() if self.editing_threshold is None else self._edits(draft, places, proposal),
            selected_by=self._selected_by([proposal.confidences[known[i]] for i in taken]),
        )

    def _selected_by(self, confidences: Sequence[float]) -> Selection:
        """Return what chose the positions with these confidences; an entropy bound is a threshold, too."""
        if not confidences:
            return "none"
        if isinstance(self.acceptance, ThresholdAcceptance):
            return "threshold" if min(confidences) > self.acceptance.threshold else "top_k"
        return "top_k" if isinstance(self.acceptance, FixedAcceptance) else "threshold"

    def _edits(self, draft: Draft, places: Sequence[int], proposal: Proposal) -> tuple[int, ...]:
        threshold = self.editing_threshold
        return tuple(
            place
            for place, token, confidence in zip(places, proposal.tokens, proposal.confidences, strict=True)
            if draft.decided[place]
            and threshold is not None
            and confidence > threshold
            and token != draft.tokens[place]
        )

    def verdict(self, draft: Draft, decision: Decision | None) -> Verdict:
        """Go on while a position before the end is undecided; with editing, until a forward changes nothing."""
        if self._open(draft):
            return "continue"
        if self.editing_threshold is not None:
            settled = decision is not None and not decision.filled and not decision.edited
            if not settled and draft.post < self.max_post_steps:
                return "continue"
        return "next" if self._end(draft) == draft.limit else "end"

    def result(self, draft: Draft, verdict: Verdict) -> Result:
        """Return the tokens before the first EOS and the limit; the EOS counts as a token."""
        end = min(self._end(draft), draft.stop)
        tokens = draft.tokens[draft.num_prompt : end]
        if verdict != "end":
            return Result(tokens=tokens, num_tokens=len(tokens), stopped_by=None)
        return Result(tokens=tokens, num_tokens=len(tokens) + 1, stopped_by=draft.tokens[end])
