"""The policies of SGLang's block-diffusion mode.

Source: `srt/dllm/algorithm` of sgl-project/sglang 0.5.23 (LowConfidence, JointThreshold); semantics: docs/decoding.md.
Both take the arg-max of the raw logits. A literal mask in the prompt stays as it is there (`dllm_prompt_mask`; earlier
releases lost their place in the block); it is refused here, as under every policy that does not fill it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from difflm.decode.policies.base import Decision, Draft, Proposal, Result, Verdict, threshold_or_top
from difflm.decode.policies.hf import edits
from difflm.decode.sampling import Greedy, Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class LowConfidence:
    """Masked positions above the threshold, or the most confident one; at most `block_size` forwards a block.

    The mask id may be proposed: then its position stays masked, and is returned as a mask if the forwards run out.
    The answer ends behind its first EOS.

    Attributes:
        block_size: tokens per block; None takes the model's.
        threshold: strict.
        eos_id, mask_id: None takes the model's.
    """

    block_size: int | None = None
    threshold: float = 0.95
    eos_id: int | None = None
    mask_id: int | None = None

    @property
    def block_length(self) -> int | None:
        """`block_size`."""
        return self.block_size

    @property
    def gen_length(self) -> int | None:
        """None: `SamplingParams.max_new_tokens` is the limit."""
        return None

    @property
    def mask_is_undecided(self) -> bool:
        """A proposed mask leaves its position undecided."""
        return True

    @property
    def max_forwards(self) -> int | None:
        """None: the block length is the bound."""
        return None

    @property
    def mask_in_prompt(self) -> bool:
        """The original keeps it as given."""
        return False

    def rule(self, suppressed: tuple[int, ...]) -> Rule:
        """Return the arg-max."""
        return Greedy()

    def places(self, draft: Draft) -> tuple[int, ...]:
        """Return the masked positions."""
        return tuple(draft.masked())

    def decide(self, draft: Draft, places: Sequence[int], proposal: Proposal) -> Decision:
        """Fill what is above the threshold, or the most confident position."""
        filled, selected_by = threshold_or_top(proposal.confidences, places, threshold=self.threshold, least=1)
        return Decision(filled=filled, selected_by=selected_by)

    def verdict(self, draft: Draft, decision: Decision | None) -> Verdict:
        """Go on while masks and forwards are left; end behind a block with an EOS."""
        if draft.masked() and draft.steps < draft.stop - draft.start:
            return "continue"
        return "next" if draft.first_eos(draft.num_prompt, draft.stop) is None else "end"

    def result(self, draft: Draft, verdict: Verdict) -> Result:
        """Return the generated tokens up to the limit, cut behind the first EOS."""
        tokens, eos = draft.generated()
        return Result(tokens=tokens, num_tokens=len(tokens), stopped_by=eos)


@dataclass(frozen=True, slots=True, kw_only=True)
class JointThreshold(LowConfidence):
    """Filling and editing in the same forward, ended by one that changes nothing.

    At most block_size + max_post_edit_steps forwards a block.

    Attributes:
        threshold: of masked positions, strict.
        edit_threshold: of decided ones, strict; 0 edits at every difference.
        max_post_edit_steps: forwards without masks whose edits are written; one more is run and discarded.
        penalty_lambda: subtracted from the logit of the token (or mask) at the position before, inside the block.
    """

    threshold: float = 0.5
    edit_threshold: float = 0.0
    max_post_edit_steps: int = 16
    penalty_lambda: float = 0.0

    def rule(self, suppressed: tuple[int, ...]) -> Rule:
        """Return the arg-max of the penalised logits."""
        return Greedy(self.penalty_lambda)

    def places(self, draft: Draft) -> tuple[int, ...]:
        """Return the positions that are not the prompt's."""
        return tuple(range(max(draft.start, draft.num_prompt), draft.stop))

    def decide(self, draft: Draft, places: Sequence[int], proposal: Proposal) -> Decision:
        """Fill as `LowConfidence`, edit the others; the forward after the last post step changes nothing."""
        token = dict(zip(places, proposal.tokens, strict=True))
        known = dict(zip(places, proposal.confidences, strict=True))
        masked = draft.masked()
        if not masked and draft.post >= self.max_post_edit_steps:
            return Decision()
        filled, selected_by = threshold_or_top(
            [known[place] for place in masked], masked, threshold=self.threshold, least=1
        )
        edited = edits(draft, token, known, threshold=self.edit_threshold)
        return Decision(filled=filled, edited=edited, selected_by=selected_by)

    def verdict(self, draft: Draft, decision: Decision | None) -> Verdict:
        """Go on while the last forward changed something and forwards are left; end behind a block with an EOS."""
        changed = decision is None or bool(decision.filled or decision.edited)
        if changed and draft.steps < draft.stop - draft.start + self.max_post_edit_steps:
            return "continue"
        return "next" if draft.first_eos(draft.num_prompt, draft.stop) is None else "end"
