"""The native policy: exact, bounded, and never a mask in the answer.

Positions at the limit or behind the first decided EOS are never decided: their rows stay masked and only serve as the
inputs that the model knows from training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from difflm.decode.policies.base import Decision, Draft, Proposal, Result, Verdict
from difflm.decode.sampling import Draw, Rule
from difflm.diffusion.acceptance import Acceptance, ThresholdAcceptance


@dataclass(frozen=True, slots=True, kw_only=True)
class Native:
    """Threshold acceptance (or another strategy) over proposals that are never MASK or an id without a token.

    Every forward decides at least one position, and the sequence ends at its first EOS once the positions before it
    are decided; the EOS is not returned.

    Attributes:
        block_length: tokens per block; None takes the model's.
        gen_length: tokens to generate at most; None takes `SamplingParams.max_new_tokens`.
        acceptance: which proposals are kept.
        temperature: 0 is arg-max; above, tokens are drawn.
        eos_id, mask_id: None takes the model's.
    """

    block_length: int | None = None
    gen_length: int | None = None
    acceptance: Acceptance = field(default=ThresholdAcceptance(0.95))
    temperature: float = 0.0
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

    def rule(self, suppressed: tuple[int, ...]) -> Rule:
        """Return draws that never give a suppressed id."""
        return Draw(temperature=self.temperature, suppressed=suppressed, entropy=self.acceptance.needs_entropy)

    def places(self, draft: Draft) -> tuple[int, ...]:
        """Return the undecided positions before the limit and the first EOS."""
        end = self._end(draft)
        return tuple(place for place in draft.masked() if place < end)

    def _end(self, draft: Draft) -> int:
        eos = draft.first_eos(max(draft.start, draft.num_prompt), draft.stop)
        return draft.limit if eos is None else min(eos, draft.limit)

    def decide(self, draft: Draft, places: Sequence[int], proposal: Proposal) -> Decision:
        """Fill what the acceptance keeps."""
        taken = self.acceptance(proposal.confidences, proposal.entropies)
        assert taken, "a denoising forward must decide something"
        return Decision(filled=tuple(places[i] for i in taken), selected_by="threshold")

    def verdict(self, draft: Draft, decision: Decision | None) -> Verdict:
        """Go on while a position before the end is undecided."""
        if self.places(draft):
            return "continue"
        return "next" if self._end(draft) == draft.limit else "end"

    def result(self, draft: Draft, verdict: Verdict) -> Result:
        """Return the tokens before the first EOS and the limit; the EOS counts as a token."""
        end = min(self._end(draft), draft.stop)
        stopped = verdict == "end"
        tokens = draft.tokens[draft.num_prompt : end]
        return Result(tokens=tokens, num_tokens=len(tokens) + stopped, stopped=stopped)
