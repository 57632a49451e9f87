"""Which requests run together. No tensors.

Every running request takes part in every forward, but for prompts that wait to be read; one joins as soon as there is
room for it and leaves as soon as it is finished, whatever the others are at. Waiting ones are served in order of
submission: none overtakes another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from difflm.decode.events import Event
from difflm.decode.policies.base import Proposal
from difflm.decode.prefixes import Chain, Prefixes
from difflm.decode.request import Request
from difflm.decode.sequences import decoding_of
from difflm.decode.work import Decoding, Outcome, Reuse, Work

Update = tuple[int, list[Event], Outcome | None]
"""Number of a request, what happened to it, and its result if it is finished."""


@dataclass(frozen=True, slots=True)
class Running:
    """A started request, and the keys of its blocks: those of its prompt, and generated ones as they are finished."""

    decoding: Decoding
    chain: Chain


@dataclass(slots=True)
class Scheduler:
    """First come, first served, as many at once as there is room for.

    Attributes:
        prefixes: the cache's entries; a request takes its whole length at once, so that it never has to stop for room.
        max_requests: requests that run at once.
        prefill_tokens: prompt tokens that one forward reads at most, all requests together; one block at least.
        waiting: admitted requests, in order, with the keys of their prompts.
        running: started requests by number, in order.
    """

    prefixes: Prefixes
    max_requests: int
    prefill_tokens: int
    waiting: deque[tuple[Request, Chain]] = field(default_factory=deque[tuple[Request, Chain]])
    running: dict[int, Running] = field(default_factory=dict[int, Running])

    def admit(self, request: Request) -> None:
        """Queue a request."""
        chain = Chain(request.block_size, request.clean_causal)
        if self.prefixes.kept:
            chain.extend(request.prompt)
        self.waiting.append((request, chain))

    def start(self) -> tuple[list[Update], list[Reuse]]:
        """Start waiting requests while there is room; return those that have already something to tell, and copies.

        The copies of cached blocks have to be made in their order, before the next forward.
        """
        updates: list[Update] = []
        reuses: list[Reuse] = []
        while self.waiting and len(self.running) < self.max_requests:
            request, chain = self.waiting[0]
            keys = chain.keys[: max(0, len(chain.keys) - request.logit_shift)]  # its last row has to be seen
            source, count = self.prefixes.find(keys)
            if self._being_read(keys[count:], count):
                break
            base = self.prefixes.reserve(max(request.capacity, 1))
            if base is None:
                break
            self.waiting.popleft()
            self.prefixes.hold(base, keys[:count])
            length = count * request.block_size
            if count:
                # Also where the source had to make room: what stood there is there until something is written.
                reuses.append(Reuse(request=request, source=source, target=base, count=length))
            decoding = decoding_of(request, base, committed=length)
            self.running[request.id] = Running(decoding, chain)
            events = decoding.begin()
            if events or decoding.outcome is not None:
                updates.append(self._told(request.id, events))
        return updates, reuses

    def _being_read(self, missing: Sequence[bytes], count: int) -> bool:
        """Return whether a running request is about to read the first missing block; waiting for it costs nothing."""
        chains = (each.chain.keys for each in self.running.values())
        return bool(missing) and any(len(keys) > count and keys[count] == missing[0] for keys in chains)

    def _told(self, request_id: int, events: list[Event]) -> Update:
        outcome = self.running[request_id].decoding.outcome
        if outcome is not None:
            self._leave(request_id)
        return request_id, events, outcome

    def _leave(self, request_id: int) -> None:
        decoding = self.running.pop(request_id).decoding
        self.prefixes.leave(decoding.base, decoding.request.block_size)

    def schedule(self) -> list[Work]:
        """Return the next forward: one piece of work of every running request, but for prompts that have to wait."""
        works: list[Work] = []
        read = 0
        for each in self.running.values():
            least = 0 if read else each.decoding.request.block_size
            work = each.decoding.next_work(max(self.prefill_tokens - read, least))
            if work is not None:
                works.append(work)
                read += work.reads
        return works

    def update(self, work: Work, proposal: Proposal) -> Update:
        """Return what the forward's answer led to; a finished request leaves, its span is free."""
        running = self.running[work.request.id]
        events = running.decoding.absorb(work, proposal)
        committed = running.decoding.committed
        if self.prefixes.kept and committed // work.request.block_size > len(self.prefixes.held[work.base]):
            running.chain.extend(running.decoding.tokens[:committed])
            self.prefixes.hold(work.base, running.chain.keys[: committed // work.request.block_size])
        return self._told(work.request.id, events)

    def drop(self, request_id: int) -> bool:
        """Forget a request in whatever state it is; return whether there was one."""
        before = len(self.waiting)
        self.waiting = deque(each for each in self.waiting if each[0].id != request_id)
        if request_id in self.running:
            self._leave(request_id)
            return True
        return len(self.waiting) < before
