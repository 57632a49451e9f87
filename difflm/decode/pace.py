"""When drafting pays, and how many tokens to draft: decided from what was accepted before. No tensors.

Costs are counted in forwards of one row. A forward of n rows costs 1 + row_cost * (n - 1) of them, and draft_cost more
if it drafts; left to right each would write one token. Nothing here depends on the clock or on other requests, so that
a request goes the same way alone and among others.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from difflm.decode.policies.verified import Verified

SHORTEST = 2
"""Places of the shortest window: one that the last token's own row predicts, and one that is drafted."""
FEW = 2
"""Tokens to go behind a forward below which drafting in it saves none."""
CREDIT = 1.0
"""Forwards that a request may lose before it goes on without drafts, and the most that it keeps of what it gained."""
REST, LONGEST_REST = 16, 256
"""Forwards without drafts before drafting is tried again: first, and most; doubled each time it does not pay."""
MEMORY = 0.8
"""What is kept of older cycles in running means."""


@dataclass(slots=True)
class Pace:
    """The drafting of one request.

    The window doubles when all of it was accepted, and halves when half or less was. A forward that verifies also
    drafts (fused) where that is expected to be cheaper than a forward of its own: what it drafts counts only if all
    drafts before it are accepted. While drafting costs more forwards than it saves, the request rests from it.

    Attributes:
        policy: settings.
        window: places that the next draft reaches, the first of them predicted by a clean row.
        balance: forwards saved lately.
        resting: forwards that are still to be made without drafts.
        rest: how long the next rest would be.
        whole: running share of cycles with every draft accepted.
        written, spent: tokens, and costs of the forwards that wrote them.
    """

    policy: Verified
    window: int = field(init=False)
    balance: float = CREDIT
    resting: int = 0
    rest: int = REST
    whole: float = 0.5
    written: int = 0
    spent: float = 0.0

    def __post_init__(self) -> None:
        assert self.policy.window is not None, "admission knows the largest window"
        self.window = min(self.policy.start, self.policy.window)

    def places(self, checked: int, room: int) -> int:
        """Return how many places the MASK rows of the next forward are to predict.

        Args:
            checked: drafts that it verifies.
            room: places behind the one that its last clean row predicts, up to the limit.
        """
        if room < FEW or self.resting or (checked and not self._fuses()):
            return 0
        return min(self.window - 1, room)

    def _fuses(self) -> bool:
        """Return whether drafting beside a verification pays.

        It costs what drafting costs, and saves, if all is accepted, a forward that drafts and would have written one
        token.
        """
        if self.policy.fused is not None:
            return self.policy.fused
        drafting = self._cost(masks=self.window - 1, checked=0) - 1.0
        token = self.spent / self.written if self.written else 1.0
        return drafting < self.whole * (1.0 + drafting - min(token, 1.0))

    def _cost(self, *, masks: int, checked: int) -> float:
        """Return what a forward costs, in forwards of one row."""
        return 1.0 + self.policy.row_cost * (masks + checked) + self.policy.draft_cost * (masks > 0)

    def absorb(self, *, masks: int, checked: int, accepted: int) -> None:
        """Take in a forward.

        Args:
            masks: its MASK rows.
            checked: drafts that it verified.
            accepted: those of them that were written; one more token was.
        """
        cost = self._cost(masks=masks, checked=checked)
        self.written, self.spent = self.written + accepted + 1, self.spent + cost
        self.balance += accepted + 1 - cost
        if self.resting:
            self.resting -= 1
            self.balance = 0.0
        if not checked:
            return
        self.whole = MEMORY * self.whole + (1.0 - MEMORY) * (accepted == checked)
        if accepted == checked:
            assert self.policy.window is not None
            self.window = min(2 * self.window, self.policy.window)
        elif 2 * accepted <= checked:
            self.window = max(self.window // 2, min(SHORTEST, self.window))
        if self.balance < 0.0 and self.policy.fallback:
            self.resting, self.rest = self.rest, min(2 * self.rest, LONGEST_REST)
            self.balance = 0.0
        elif self.balance > 0.0:
            self.rest = REST
            self.balance = min(self.balance, CREDIT)
