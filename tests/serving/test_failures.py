"""Failures that are no fault of the request carry what their answers need."""

from __future__ import annotations

from difflm.errors import DifflmError
from difflm.serving.failures import Overloaded, Unanswered


def test_a_full_queue_says_when_to_come_back() -> None:
    failure = Overloaded("full", retry_after=7)
    assert failure.retry_after == 7
    assert isinstance(failure, Unanswered)


def test_they_are_not_the_users_to_mend() -> None:
    assert not issubclass(Unanswered, DifflmError)
