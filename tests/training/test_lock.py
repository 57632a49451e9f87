"""One process per run folder; a lock whose process is dead holds nobody up."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from difflm.errors import ConfigError
from difflm.training.lock import LOCK, RunLock

HOLDER = """
import sys, time
from pathlib import Path
from difflm.training.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_refused_and_named_until_it_dies(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        message = rf"train\.output: .* is in use by process {process.pid} on {socket.gethostname()}; "
        with pytest.raises(ConfigError, match=message):
            RunLock(tmp_path)
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == process.pid
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    lock = RunLock(tmp_path)
    assert (
        lock.note == f"took over the run folder from process {process.pid} on {socket.gethostname()}, which has ended"
    )
    assert json.loads((tmp_path / LOCK).read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}
    lock.close()
    assert list(tmp_path.iterdir()) == []
    lock.close()


def test_a_lock_that_was_let_go_between_opening_and_locking_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder deletes the file and leaves after we have opened it: a lock on that file would guard nothing."""
    first = RunLock(tmp_path)
    real, calls = fcntl.flock, []

    def let_go(handle: int, operation: int) -> None:
        if not calls:
            calls.append(handle)
            first.close()
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", let_go)
    second = RunLock(tmp_path)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="is in use by"):
        RunLock(tmp_path)
    second.close()


def test_two_trainers_of_one_process_are_two(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    with pytest.raises(ConfigError, match=rf"in use by process {os.getpid()}"):
        RunLock(tmp_path)
    lock.close()
    RunLock(tmp_path).close()


def test_an_unreadable_lock_file_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("{half")
    lock = RunLock(tmp_path)
    assert lock.note == ""
    lock.close()


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    lock = RunLock(tmp_path)
    assert "no locks (No locks available)" in lock.note
    lock.close()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(ConfigError, match=r"train\.output: .* cannot be written \(Is a directory\)"):
        RunLock(tmp_path)
