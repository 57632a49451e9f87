"""The queue: first come, first served; a finished or dropped request leaves it."""

from __future__ import annotations

from difflm.decode.request import Request
from difflm.decode.scheduler import Scheduler
from difflm.decode.sequences import Proposal
from tests.decode.test_runner import request_of


def numbered(number: int) -> Request:
    return request_of(id=number, prompt=(1,), max_new_tokens=3)


ALL = Proposal(tokens=(5, 6, 7), confidences=(0.9, 0.9, 0.9), accepted=(True, True, True))


def test_requests_run_in_order_and_leave_when_finished() -> None:
    scheduler = Scheduler()
    assert scheduler.schedule() is None
    for number in (0, 1):
        scheduler.admit(numbered(number))
    for number in (0, 1):
        work = scheduler.schedule()
        assert work is not None
        assert work.request.id == number
        events, outcome = scheduler.update(work, ALL)
        assert {event.request_id for event in events} == {number}
        assert outcome is not None
        assert outcome.tokens == [5, 6, 7]
    assert scheduler.schedule() is None


def test_a_request_is_dropped_whether_it_runs_or_waits() -> None:
    scheduler = Scheduler()
    for number in (0, 1, 2):
        scheduler.admit(numbered(number))
    assert scheduler.drop(0)
    assert scheduler.drop(2)
    assert not scheduler.drop(2)
    work = scheduler.schedule()
    assert work is not None
    assert work.request.id == 1
