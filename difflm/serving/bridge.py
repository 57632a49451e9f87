"""Requests of many tasks in front, one thread that steps the engine behind. Knows no HTTP.

The engine belongs to the thread: everything that touches it happens there, between two forwards. Tasks hand orders in
and get tickets, to which events are delivered on their own loop. The engine holds no more requests than it can run; the
others wait here, where whose turn it is can be chosen.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from difflm.decode.engine import Engine
from difflm.decode.events import Committed, Event, Finished
from difflm.errors import RequestError
from difflm.serving.failures import Draining, EngineDead, EngineFailed, Overloaded
from difflm.serving.fair import FairQueue
from difflm.serving.tickets import Done, Job, Order, Ticket

LONGEST_RETRY = 120
MOST_FAILURES = 3
"""Forwards that fail one behind another, after which the engine is given up."""

State = Literal["new", "running", "draining", "dead", "stopped"]
_log = logging.getLogger("difflm.serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """What may wait; what the engine runs is not counted.

    Attributes:
        requests: answers that wait at most: a request for n of them counts n times.
        tokens: of their prompts and longest answers together.
    """

    requests: int = 256
    tokens: int = 1 << 20


@dataclass(slots=True, kw_only=True)
class Counts:
    """What has happened since the start.

    Attributes:
        forwards: of the engine, each for all requests that took part.
        tokens: committed.
        failures: forwards that failed.
        refused: answers that were not taken, as the queue was full.
        cancelled: answers that nobody wanted any more.
        seconds: spent in forwards.
    """

    forwards: int = 0
    tokens: int = 0
    failures: int = 0
    refused: int = 0
    cancelled: int = 0
    seconds: float = 0.0


class Bridge:
    """Runs an engine in a thread of its own for the tasks of one event loop.

    Args:
        make_engine: returns an engine; called in the thread, and again after a forward has failed.
        limits: what may wait.
        on_dead: called on the loop when the engine has stopped for good.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        *,
        limits: QueueLimits | None = None,
        on_dead: Callable[[], None] = lambda: None,
    ) -> None:
        self.limits = limits or QueueLimits()
        self.counts = Counts()
        self.state: State = "new"
        self._make_engine, self.on_dead = make_engine, on_dead
        self._wake = threading.Condition()
        self._queue: FairQueue[Ticket] = FairQueue()
        self._cancelled: list[Ticket] = []
        self._running: dict[int, Ticket] = {}
        self._active: set[Ticket] = set()
        self._room = 0
        self._failed_in_a_row = 0
        self._thread = threading.Thread(target=self._run, name="difflm-engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Make the engine and start its thread.

        Raises:
            EngineDead: it could not be made.
        """
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        self._thread.start()
        await self._ready

    @property
    def waiting(self) -> int:
        """Answers that wait."""
        return len(self._queue)

    @property
    def waiting_tokens(self) -> int:
        """Tokens of the prompts and longest answers that wait."""
        return self._queue.tokens

    @property
    def running(self) -> int:
        """Answers that the engine is at."""
        return len(self._running)

    @property
    def active(self) -> int:
        """Answers that somebody waits for, waiting or running."""
        return len(self._active)

    def submit(self, orders: Sequence[Order | Job], *, client: Hashable, request: Hashable) -> list[Ticket]:
        """Queue orders, all of them or none, and return their tickets. To be called on the loop.

        Args:
            orders: of one request.
            client: whose turn it is, among clients.
            request: whose turn it is, among requests of this client.

        Raises:
            Draining: no new ones are taken.
            EngineDead: nor will they be.
            Overloaded: there is no room for them in the queue.
        """
        self._check_open()
        cost = sum(order.cost for order in orders)
        with self._wake:
            self._check_room(len(orders), cost)
            tickets = [Ticket(order=order, client=client, request=request) for order in orders]
            for ticket in tickets:
                self._queue.push(ticket, cost=ticket.order.cost, client=client, request=request)
            self._wake.notify()
        self._active.update(tickets)
        return tickets

    def _check_open(self) -> None:
        if self.state == "dead":
            raise EngineDead("the engine has stopped; the server is about to exit")
        if self.state != "running":
            raise Draining("the server is about to stop and takes no new requests")

    def _check_room(self, count: int, cost: int) -> None:
        """Refuse orders that neither the queue nor an engine with nothing to do has room for."""
        if self.waiting == 0 and self.running == 0:
            return
        if self.waiting + count <= self.limits.requests and self.waiting_tokens + cost <= self.limits.tokens:
            return
        self.counts.refused += count
        served, seconds = self.counts.tokens, self.counts.seconds
        wait = math.ceil(self.waiting_tokens * seconds / served) if served else 1
        raise Overloaded(
            f"{self.waiting} answers of {self.waiting_tokens} tokens are waiting, and {self.limits.requests} of "
            f"{self.limits.tokens} may; try again later",
            retry_after=min(max(1, wait), LONGEST_RETRY),
        )

    def cancel(self, ticket: Ticket) -> None:
        """Give an order up, in whatever state it is; it is out before the next forward. To be called on the loop."""
        if ticket not in self._active:
            return
        self._active.discard(ticket)
        ticket.closed = True
        self.counts.cancelled += 1
        with self._wake:
            if not self._queue.remove(ticket, client=ticket.client, request=ticket.request):
                self._cancelled.append(ticket)
                self._wake.notify()

    def drain(self) -> None:
        """Take no new orders from now on; those that there are go on."""
        if self.state == "running":
            self.state = "draining"

    async def idle(self) -> None:
        """Return when nobody waits for an answer any more."""
        while self._active:
            await asyncio.sleep(0.02)

    def fail_all(self) -> None:
        """Fail every answer that somebody waits for, as the server is about to stop. To be called on the loop."""
        for ticket in list(self._active):
            self.cancel(ticket)
            ticket.tell(Draining("the server has stopped"))

    async def stop(self) -> None:
        """Fail what is left, and end the thread."""
        with self._wake:
            if self.state != "dead":
                self.state = "stopped"
            self._wake.notify()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)
        self.fail_all()

    # In the thread.

    def _run(self) -> None:
        try:
            self._engine = self._make_engine()
            self.state = "running"
            self._on_loop(lambda: self._ready.set_result(None) if self._ready else None)
            while self._turn():
                pass
        # Whatever it is, tasks wait for answers that will not come, and have to be told.
        except BaseException as error:
            _log.exception("the engine has stopped")
            self.state = "dead"
            self._on_loop(lambda error=error: self._died(error))

    def _turn(self) -> bool:
        """Do what there is to do until the end of one forward; return False when the thread is to end."""
        with self._wake:
            while self.state in ("running", "draining") and not (self._cancelled or self._queue or self._running):
                self._wake.wait()
            if self.state == "stopped":
                return False
            cancelled, self._cancelled = self._cancelled, []
        for ticket in cancelled:
            if ticket.number is not None and self._running.pop(ticket.number, None) is not None:
                self._engine.cancel(ticket.number)
                self._room -= ticket.order.capacity
        job = self._start()
        if self._running:
            self._step()
        if job is not None:
            self._compute(job, job.order)
        return True

    def _start(self) -> Ticket | None:
        """Hand to the engine what it has room for, in turn; return a job, if one is next."""
        if self._engine.scheduler.waiting:
            return None  # for another request that reads the same prompt, or for room in one piece
        while True:
            with self._wake:
                if not self._queue or not self._fits(self._queue.head()):
                    return None
                ticket = self._queue.pop()
            ticket.started = time.monotonic()
            if isinstance(ticket.order, Job):
                return ticket
            try:
                ticket.number = self._engine.submit(ticket.order.prompt, ticket.order.params)
            except RequestError as error:
                self._deliver([(ticket, error)])
                continue
            self._running[ticket.number] = ticket
            self._room += ticket.order.capacity

    def _fits(self, ticket: Ticket) -> bool:
        """Return whether the engine starts it at its next step, were it given it."""
        if isinstance(ticket.order, Job) or not self._running:
            return True
        enough = self._room + ticket.order.capacity <= self._engine.cache_tokens
        return enough and len(self._running) < self._engine.scheduler.max_requests

    def _step(self) -> None:
        """Run one forward and deliver what it led to; what took part in one that fails has no answer."""
        before = time.perf_counter()
        try:
            events = self._engine.step()
        # Of the model, of a policy, of memory: the requests of this batch are lost, the server is not.
        except Exception as error:
            self._give_up_batch(error)
            return
        self._failed_in_a_row = 0
        self.counts.forwards += 1
        self.counts.seconds += time.perf_counter() - before
        told: list[tuple[Ticket, Any]] = []
        for event in events:
            ticket = self._running[event.request_id]
            if isinstance(event, Committed):
                self.counts.tokens += len(event.tokens)
            if isinstance(event, Finished):
                del self._running[event.request_id]
                self._room -= ticket.order.capacity
            if ticket.order.watched or isinstance(event, Committed | Finished):
                told.append((ticket, event))
        if told:
            self._deliver(told)

    def _give_up_batch(self, error: Exception) -> None:
        """Fail the engine's requests and go on with a new engine: what state this one is in cannot be known."""
        _log.error("a forward failed; its %d requests are given up", len(self._running), exc_info=error)
        self.counts.failures += 1
        self._failed_in_a_row += 1
        lost = [(ticket, EngineFailed("the engine failed")) for ticket in self._running.values()]
        self._running, self._room = {}, 0
        self._deliver(lost)
        if self._failed_in_a_row >= MOST_FAILURES:
            raise RuntimeError(f"{MOST_FAILURES} forwards failed one behind another") from error
        self._engine = self._make_engine()

    def _compute(self, ticket: Ticket, job: Order | Job) -> None:
        assert isinstance(job, Job), "only jobs are computed"
        try:
            told: Any = Done(value=job.compute())
        except RequestError as error:
            told = error
        except Exception as error:
            _log.exception("a computation failed")
            self.counts.failures += 1
            told = EngineFailed(str(error))
        self._deliver([(ticket, told)])

    def _deliver(self, told: list[tuple[Ticket, Any]]) -> None:
        self._on_loop(lambda: self._tell(told))

    def _on_loop(self, call: Callable[[], None]) -> None:
        assert self._loop is not None, "the thread runs after the start"
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call)

    # On the loop.

    def _tell(self, told: Sequence[tuple[Ticket, Event | Done | Exception]]) -> None:
        for ticket, what in told:
            if not ticket.closed:
                ticket.tell(what)
            if ticket.closed:
                self._active.discard(ticket)

    def _fail(self, tickets: Sequence[Ticket], failure: Exception) -> None:
        self._tell([(ticket, failure) for ticket in tickets])

    def _died(self, error: BaseException) -> None:
        self._fail(list(self._active), EngineDead("the engine has stopped; the server is about to exit"))
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(error if isinstance(error, Exception) else EngineDead(repr(error)))
        self.on_dead()
