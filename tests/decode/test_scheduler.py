"""The queue: first come, first served, together as far as there is room; a finished or dropped request leaves it."""

from __future__ import annotations

import pytest

from difflm.decode.policies.base import Proposal
from difflm.decode.prefixes import Prefixes
from difflm.decode.request import Request
from difflm.decode.scheduler import Scheduler
from difflm.decode.slots import Spans
from tests.decode.test_runner import request_of

ALL = Proposal(tokens=(5, 6, 7), confidences=(1.0, 1.0, 1.0))


def numbered(number: int, new: int = 3) -> Request:
    return request_of(id=number, prompt=(1,), max_new_tokens=new)  # one block of 4 entries, or more


def scheduler_of(size: int, most: int, *, kept: bool = False, prefill_tokens: int = 100) -> Scheduler:
    return Scheduler(Prefixes(Spans(size), kept=kept), most, prefill_tokens)


def running(scheduler: Scheduler) -> list[tuple[int, int]]:
    """Return number and span of the works of the next forward."""
    return [(work.request.id, work.base) for work in scheduler.schedule()]


def test_requests_run_together_and_leave_when_finished() -> None:
    scheduler = scheduler_of(100, 8)
    assert scheduler.start() == ([], [])
    assert scheduler.schedule() == []
    for number in (0, 1):
        scheduler.admit(numbered(number))
    assert scheduler.start() == ([], [])
    assert running(scheduler) == [(0, 0), (1, 4)]
    first, second = scheduler.schedule()
    number, events, outcome = scheduler.update(first, ALL)
    assert (number, {event.request_id for event in events}) == (0, {0})
    assert outcome is not None
    assert outcome.tokens == [5, 6, 7]
    assert running(scheduler) == [(1, 4)]
    scheduler.admit(numbered(2))
    scheduler.start()
    assert running(scheduler) == [(1, 4), (2, 0)]
    scheduler.update(second, ALL)
    assert scheduler.prefixes.spans.used == 4


@pytest.mark.parametrize(("size", "most"), [(8, 9), (100, 2)])
def test_requests_wait_for_room_and_none_overtakes(size: int, most: int) -> None:
    scheduler = scheduler_of(size, most)
    for number, new in ((0, 3), (1, 3), (2, 7), (3, 3)):
        scheduler.admit(numbered(number, new))
    scheduler.start()
    assert running(scheduler) == [(0, 0), (1, 4)]
    scheduler.update(scheduler.schedule()[0], ALL)
    scheduler.start()
    expected = [(1, 4)] if size == 8 else [(1, 4), (2, 8)]  # the third needs 8 entries in a row
    assert running(scheduler) == expected


def test_a_request_is_dropped_whether_it_runs_or_waits() -> None:
    scheduler = scheduler_of(8, 8)
    for number in range(4):
        scheduler.admit(numbered(number))
    scheduler.start()
    assert scheduler.drop(0)
    assert scheduler.drop(2)
    assert not scheduler.drop(2)
    scheduler.start()
    assert running(scheduler) == [(1, 4), (3, 0)]


def test_a_request_that_needs_no_forward_is_done_when_it_starts() -> None:
    scheduler = scheduler_of(8, 8)
    scheduler.admit(request_of(id=5, prompt=(1, 2, 3, 4), max_new_tokens=0))
    ((number, events, outcome),), _ = scheduler.start()
    assert (number, events) == (5, [])
    assert outcome is not None
    assert (outcome.tokens, outcome.finish_reason) == ([], "length")
    assert scheduler.prefixes.spans.used == 0
