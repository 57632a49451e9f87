"""The first signal asks, the second aborts, and the handlers of before come back."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from difflm.training.signals import HANDLED, StopRequest, interrupted


@pytest.mark.parametrize("number", HANDLED)
def test_the_first_signal_is_kept_and_the_second_aborts(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in HANDLED]
    with StopRequest() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received is number
        expected = KeyboardInterrupt if number is signal.SIGINT else SystemExit
        with pytest.raises(expected) as caught:
            os.kill(os.getpid(), number)
        if number is signal.SIGTERM:
            assert caught.value.args == (143,)
    assert [signal.getsignal(each) for each in HANDLED] == before


def test_handlers_come_back_after_an_error() -> None:
    before = [signal.getsignal(each) for each in HANDLED]
    with pytest.raises(RuntimeError), StopRequest():
        raise RuntimeError
    assert [signal.getsignal(each) for each in HANDLED] == before


def test_another_thread_leaves_the_handlers_alone() -> None:
    before, inside, failures = [signal.getsignal(each) for each in HANDLED], [], []

    def body() -> None:
        try:
            with StopRequest():
                inside.extend(signal.getsignal(each) for each in HANDLED)
        except ValueError as error:  # "signal only works in main thread"
            failures.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert (inside, failures) == (before, [])


def test_the_error_says_what_was_saved(tmp_path: Path) -> None:
    error = interrupted(signal.SIGTERM, tmp_path, step=7)
    assert error.checkpoint == tmp_path
    assert str(error) == (
        f"SIGTERM: stopped after step 7, everything is saved in {tmp_path}; resume with --resume auto"
    )
