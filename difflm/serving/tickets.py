"""What is asked of the engine, and the ticket on which its answer arrives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from difflm.decode.events import Committed, Completion, Event, Finished
from difflm.decode.request import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One answer.

    Attributes:
        prompt: token ids.
        params: how it is decoded; `n` is 1.
        capacity: tokens of cache that it takes (`Request.capacity`).
        watched: whether everything is told, or only what is final.
        block_size: tokens of a block; 1 left to right.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    capacity: int
    watched: bool = False
    block_size: int = 1

    @property
    def cost(self) -> int:
        """Tokens that it takes at most."""
        return self.capacity


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Something to be computed with the model, between two forwards of the engine.

    Attributes:
        compute: called in the engine's thread.
        cost: tokens that go through the model.
    """

    compute: Callable[[], Any]
    cost: int

    @property
    def capacity(self) -> int:
        """0: it takes nothing of the engine's cache."""
        return 0

    @property
    def watched(self) -> bool:
        """False: it has no events."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A job is done.

    Attributes:
        value: what it returned.
    """

    value: Any


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket:
    """An order on its way; belongs to the event loop, but for `number` and `started`.

    Attributes:
        order: what was asked for.
        client, request: whose it is.
        submitted: when, monotonic seconds.
        started: when the engine got it; None while it waits.
        first: when the first tokens were final.
        finished: when the answer was complete.
        number: in the engine.
        closed: nothing more is told.
    """

    order: Order | Job
    client: Hashable
    request: Hashable
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    first: float | None = None
    finished: float | None = None
    number: int | None = None
    closed: bool = False
    _inbox: asyncio.Queue[Event | Done | Exception] = field(default_factory=asyncio.Queue)

    def tell(self, what: Event | Done | Exception) -> None:
        """Take in what happened; a result and a failure are the last."""
        now = time.monotonic()
        if isinstance(what, Committed) and self.first is None:
            self.first = now
        if isinstance(what, Finished | Done | Exception):
            self.finished, self.closed = now, True
        self._inbox.put_nowait(what)

    async def events(self) -> AsyncIterator[Event]:
        """Yield the events of an answer, the last of them `Finished`.

        Raises:
            Unanswered: there is no answer; the class says why.
            RequestError: the engine refused it.
        """
        while True:
            what = await self._inbox.get()
            if isinstance(what, Exception):
                raise what
            assert not isinstance(what, Done), "answers end with Finished"
            yield what
            if isinstance(what, Finished):
                return

    async def completion(self) -> Completion:
        """Return the answer. Raises as `events`."""
        async for event in self.events():
            if isinstance(event, Finished):
                return event.completion
        raise AssertionError("events end with Finished or a failure")

    async def value(self) -> Any:
        """Return what a job computed. Raises as `events`."""
        what = await self._inbox.get()
        if isinstance(what, Exception):
            raise what
        assert isinstance(what, Done), "jobs end with Done"
        return what.value
