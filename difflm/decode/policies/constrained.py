"""The native policy under a grammar: what is decided of a block is always its beginning.

Which token may stand at a place depends on all tokens before it. So a forward decides the first undecided position, the
one behind it, and so on, as long as the acceptance takes them; what is behind stays masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter

from difflm.decode.policies.base import Decision, Draft, Policy, Proposal, Result, Verdict
from difflm.decode.policies.native import Native
from difflm.errors import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Constrained(Native):
    """`Native`, filling from the left. A threshold keeps proposals up to the first that is not above it.

    Confidences are those of the distribution over the tokens that the grammar allows.
    """

    def keeps(self, confidences: Sequence[float], entropies: Sequence[float]) -> bool:
        """Return whether the acceptance would take all of these; the first is always taken.

        Args:
            confidences: of the first undecided positions.
            entropies: of the same; empty unless the acceptance needs them.
        """
        return len(confidences) == 1 or len(self.acceptance(confidences, entropies)) == len(confidences)

    def decide(self, draft: Draft, places: Sequence[int], proposal: Proposal) -> Decision:
        """Fill the longest beginning of the proposals that the acceptance takes as a whole."""
        count = 1
        while count < len(proposal.tokens):
            entropies = proposal.entropies[: count + 1]
            if not self.keeps(proposal.confidences[: count + 1], entropies):
                break
            count += 1
        return Decision(filled=tuple(places[:count]), selected_by=self._selected_by(proposal.confidences[:count]))

    def result(self, draft: Draft, verdict: Verdict) -> Result:
        """Return what the native policy does; of an answer that the grammar left without a token, what is decided."""
        if verdict != "early":
            return Native.result(self, draft, verdict)
        tokens = draft.tokens[draft.num_prompt : draft.decided.index(False)]
        return Result(tokens=tokens, num_tokens=len(tokens), stopped_by=None)


def constrained_policy(policy: Policy) -> Constrained:
    """Return the policy that does under a grammar what `policy` does without.

    Args:
        policy: of the request.

    Raises:
        RequestError: it cannot fill a block from the left.
    """
    if not isinstance(policy, Native):
        raise RequestError(
            f"policy {type(policy).__name__}: it cannot be constrained, as it reproduces a system that fills a block "
            "in its own order; use the native policy, or decoding 'next_token' or 'verified'"
        )
    if policy.editing_threshold is not None:
        raise RequestError(
            f"editing_threshold: {policy.editing_threshold!r} cannot be used beside a constraint, as what follows a "
            "replaced token may no longer match; leave one of them out"
        )
    return Constrained(**{each.name: attrgetter(each.name)(policy) for each in fields(policy)})
