"""A ticket tells everything in order, then nothing more."""

from __future__ import annotations

import asyncio

import pytest

from difflm.decode.events import Committed, Completion, Finished, Forwards
from difflm.decode.request import SamplingParams
from difflm.serving.failures import EngineFailed
from difflm.serving.tickets import Done, Job, Order, Ticket

FINISHED = Finished(
    request_id=0,
    completion=Completion(
        tokens=[1, 2], text=None, forwards=Forwards(denoise=1), finish_reason="length", num_tokens=2, seconds=0.1
    ),
)
COMMITTED = Committed(request_id=0, block=0, tokens=(1, 2))


def ticket(order: Order | Job | None = None) -> Ticket:
    order = order or Order(prompt=(1,), params=SamplingParams(), capacity=8)
    return Ticket(order=order, client="a", request="r")


def test_events_end_with_finished() -> None:
    async def told() -> None:
        one = ticket()
        one.tell(COMMITTED)
        assert one.first is not None
        assert not one.closed
        one.tell(FINISHED)
        assert one.closed
        assert [event async for event in one.events()] == [COMMITTED, FINISHED]
        one.tell(FINISHED)
        assert await one.completion() == FINISHED.completion

    asyncio.run(told())


def test_a_failure_is_raised_where_the_answer_is_awaited() -> None:
    async def told() -> None:
        one = ticket()
        one.tell(COMMITTED)
        one.tell(EngineFailed("broken"))
        assert one.closed
        with pytest.raises(EngineFailed, match="broken"):
            await one.completion()

    asyncio.run(told())


def test_jobs_have_a_value_and_take_no_cache() -> None:
    async def told() -> None:
        one = ticket(Job(compute=lambda: 1, cost=5))
        assert (one.order.cost, one.order.capacity, one.order.watched) == (5, 0, False)
        one.tell(Done(value=[1]))
        assert await one.value() == [1]
        two = ticket(Job(compute=lambda: 1, cost=5))
        two.tell(EngineFailed("broken"))
        with pytest.raises(EngineFailed):
            await two.value()

    asyncio.run(told())
