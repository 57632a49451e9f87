"""A lock file: one holder, taken over from a dead one; what a run folder says of it: `tests/training/test_lock.py`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from difflm.checkpoints.lock import FileLock, InUseError


def test_one_holder_who_is_named(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    with pytest.raises(
        InUseError, match=rf"lock: held by process {os.getpid()} on .*; wait for it or stop it"
    ) as caught:
        FileLock(tmp_path / "lock")
    assert caught.value.holder.startswith(f"process {os.getpid()} on ")
    lock.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_process_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text('{"pid": 1, "host": "elsewhere"}')
    lock = FileLock(tmp_path / "lock")
    assert (lock.left, lock.unsupported) == ("process 1 on elsewhere", "")
    lock.close()


def test_no_folder_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        FileLock(tmp_path / "absent" / "lock")
