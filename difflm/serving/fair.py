"""Whose request is next: clients take turns by tokens, and so do the requests of one client. No tensors, no threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class Turns:
    """Start-time fair queueing of keys: the one that was served least, counted from when it came, is next.

    Source: Goyal, Vin, Cheng, "Start-time Fair Queueing", 1996, section 2; one waiting item stands for its flow.

    Attributes:
        now: virtual time, in tokens.
        starts: of each waiting key, when its next item may start; in order of arrival.
        ends: of keys that wait for nothing, until when they have been served; only what lies ahead.
    """

    now: float = 0.0
    starts: dict[Hashable, float] = field(default_factory=dict[Hashable, float])
    ends: dict[Hashable, float] = field(default_factory=dict[Hashable, float])

    def come(self, key: Hashable) -> None:
        """Let a key wait, behind what it has had already."""
        if key not in self.starts:
            self.starts[key] = max(self.now, self.ends.pop(key, self.now))

    def first(self) -> Hashable:
        """Return the key that is next; of several the one that came first."""
        return min(self.starts, key=self.starts.__getitem__)

    def serve(self, key: Hashable, cost: float) -> None:
        """Count what a key is given, tokens."""
        self.now = max(self.now, self.starts[key])
        self.starts[key] += cost

    def leave(self, key: Hashable) -> None:
        """Forget a key that waits for nothing any more, but for what it had ahead of others."""
        self.ends[key] = self.starts.pop(key)
        self.ends = {each: end for each, end in self.ends.items() if end > self.now} if self.starts else {}


class FairQueue(Generic[T]):
    """Items that wait, each of a client and of one of its requests.

    Clients with items share what is served evenly, counted in tokens, however many requests or items each has; within
    a client its requests do, and within a request items are served in their order.
    """

    def __init__(self) -> None:
        self._clients = Turns()
        self._requests: dict[Hashable, Turns] = {}
        self._items: dict[tuple[Hashable, Hashable], deque[tuple[T, int]]] = {}
        self._count = self._tokens = 0

    def __len__(self) -> int:
        """Return the number of items."""
        return self._count

    @property
    def tokens(self) -> int:
        """Cost of all items together, tokens."""
        return self._tokens

    def push(self, item: T, *, cost: int, client: Hashable, request: Hashable) -> None:
        """Add an item.

        Args:
            item: what waits.
            cost: tokens that serving it takes.
            client: whose it is.
            request: of this client, to which it belongs.
        """
        self._clients.come(client)
        self._requests.setdefault(client, Turns()).come(request)
        self._items.setdefault((client, request), deque()).append((item, cost))
        self._count += 1
        self._tokens += cost

    def _first(self) -> tuple[Hashable, Hashable]:
        client = self._clients.first()
        return client, self._requests[client].first()

    def head(self) -> T:
        """Return the item that is next; there has to be one."""
        return self._items[self._first()][0][0]

    def pop(self) -> T:
        """Take out the item that is next; there has to be one."""
        client, request = self._first()
        item, cost = self._items[client, request].popleft()
        self._clients.serve(client, cost)
        self._requests[client].serve(request, cost)
        self._left(client, request, cost)
        return item

    def remove(self, item: T, *, client: Hashable, request: Hashable) -> bool:
        """Take out an item wherever it stands; return whether it was there."""
        waiting = self._items.get((client, request), deque[tuple[T, int]]())
        found = next((each for each in waiting if each[0] is item), None)
        if found is None:
            return False
        waiting.remove(found)
        self._left(client, request, found[1])
        return True

    def _left(self, client: Hashable, request: Hashable, cost: int) -> None:
        """Count an item out, and its request and client if they have no other."""
        self._count -= 1
        self._tokens -= cost
        if self._items[client, request]:
            return
        del self._items[client, request]
        self._requests[client].leave(request)
        if not self._requests[client].starts:
            del self._requests[client]
            self._clients.leave(client)
