"""Which request runs next. No tensors.

One sequence is decoded at a time, in order of submission; batching changes this file and the runner.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from difflm.decode.request import Event, Request
from difflm.decode.sequences import Decoding, Outcome, Proposal, Work, decoding_of


@dataclass(slots=True)
class Scheduler:
    """First come, first served.

    Attributes:
        waiting: states of the admitted requests, the running one first.
    """

    waiting: deque[tuple[int, Decoding]] = field(default_factory=deque[tuple[int, Decoding]])

    def admit(self, request: Request) -> None:
        """Queue a request."""
        self.waiting.append((request.id, decoding_of(request)))

    def schedule(self) -> Work | None:
        """Return the next forward, or None when there is nothing to do."""
        return self.waiting[0][1].next_work() if self.waiting else None

    def update(self, work: Work, proposal: Proposal) -> tuple[list[Event], Outcome | None]:
        """Return what the forward's answer led to; a finished request leaves the queue with its outcome."""
        decoding = self.waiting[0][1]
        events = decoding.absorb(work, proposal)
        if decoding.outcome is not None:
            self.waiting.popleft()
        return events, decoding.outcome

    def drop(self, request_id: int) -> bool:
        """Forget a request in whatever state it is; return whether there was one."""
        before = len(self.waiting)
        self.waiting = deque(entry for entry in self.waiting if entry[0] != request_id)
        return len(self.waiting) < before
