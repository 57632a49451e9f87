"""A process answers a line with a line, and is ended where it takes too long."""

from __future__ import annotations

import signal

import pytest

from difflm.checkpoints.processes import LineProcess


def test_a_line_is_answered_and_what_takes_too_long_is_ended() -> None:
    process = LineProcess("code")
    try:
        assert process.line(b"print(6 * 7)\n", 60).endswith(b"42\n")
        assert process.alive
        with pytest.raises(TimeoutError, match=r"it did not end within 0\.5 seconds"):
            process.line(b"while True: pass\n\n", 0.5)
        assert process._process.wait(60) == -signal.SIGKILL
        assert not process.alive
        assert not process.line(b"print(1)\n", 60).endswith(b"\n"), "nothing comes of a process that is gone"
    finally:
        process.end()
