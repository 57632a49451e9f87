"""Which requests run together. No tensors.

Every running request takes part in every forward; one joins as soon as there is room for it and leaves as soon as it is
finished, whatever the others are at. Waiting ones are served in order of submission: none overtakes another.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from difflm.decode.events import Event
from difflm.decode.policies.base import Proposal
from difflm.decode.request import Request
from difflm.decode.sequences import decoding_of
from difflm.decode.slots import Spans
from difflm.decode.work import Decoding, Outcome, Work

Update = tuple[int, list[Event], Outcome | None]
"""Number of a request, what happened to it, and its result if it is finished."""


@dataclass(slots=True)
class Scheduler:
    """First come, first served, as many at once as there is room for.

    Attributes:
        spans: the cache's entries; a request takes its whole length at once, so that it never has to stop for room.
        max_requests: requests that run at once.
        waiting: admitted requests, in order.
        running: started requests by number, in order.
    """

    spans: Spans
    max_requests: int
    waiting: deque[Request] = field(default_factory=deque[Request])
    running: dict[int, Decoding] = field(default_factory=dict[int, Decoding])

    def admit(self, request: Request) -> None:
        """Queue a request."""
        self.waiting.append(request)

    def start(self) -> list[Update]:
        """Start waiting requests while there is room; return those that have already something to tell."""
        updates: list[Update] = []
        while self.waiting and len(self.running) < self.max_requests:
            request = self.waiting[0]
            base = self.spans.reserve(max(request.capacity, 1))
            if base is None:
                break
            self.waiting.popleft()
            decoding = self.running[request.id] = decoding_of(request, base)
            events = decoding.begin()
            if events or decoding.outcome is not None:
                updates.append(self._told(request.id, events))
        return updates

    def _told(self, request_id: int, events: list[Event]) -> Update:
        outcome = self.running[request_id].outcome
        if outcome is not None:
            self._leave(request_id)
        return request_id, events, outcome

    def _leave(self, request_id: int) -> None:
        self.spans.release(self.running.pop(request_id).base)

    def schedule(self) -> list[Work]:
        """Return the next forward: one piece of work of every running request."""
        return [each.next_work() for each in self.running.values()]

    def update(self, work: Work, proposal: Proposal) -> Update:
        """Return what the forward's answer led to; a finished request leaves, its span is free."""
        events = self.running[work.request.id].absorb(work, proposal)
        return self._told(work.request.id, events)

    def drop(self, request_id: int) -> bool:
        """Forget a request in whatever state it is; return whether there was one."""
        before = len(self.waiting)
        self.waiting = deque(each for each in self.waiting if each.id != request_id)
        if request_id in self.running:
            self._leave(request_id)
            return True
        return len(self.waiting) < before
