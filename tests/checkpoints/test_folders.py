"""Output folders appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from difflm.checkpoints.folders import require_free, staged_folder
from difflm.errors import CheckpointError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_success_renames(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "deep" / "out") as stage:
        (stage / "sub").mkdir()
        (stage / "sub" / "a").write_text("1")
        (stage / "secret").touch(mode=0o600)
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"]
    assert names(tmp_path / "deep" / "out") == ["secret", "sub"]
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "deep" / "out" / "secret").stat().st_mode == plain.stat().st_mode


def test_an_empty_folder_is_a_free_target(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with staged_folder(tmp_path / "out") as stage:
        (stage / "a").touch()
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error):
        _fail(tmp_path / "out", error)
    assert names(tmp_path) == []


def test_a_killed_attempt_is_cleared_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "half").touch()
    with staged_folder(tmp_path / "out") as stage:
        assert names(stage) == []
    assert names(tmp_path) == ["out"]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"out: cannot be written \(No space left on device\)"):
        _fail(tmp_path / "out", OSError(28, "No space left on device"))
    assert names(tmp_path) == []


def _fail(target: Path, error: BaseException | type[BaseException]) -> None:
    with staged_folder(target) as stage:
        (stage / "a").touch()
        raise error


def test_taken_targets_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("keep")
    (tmp_path / "file").write_text("keep")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for name, reason in (("full", "not empty"), ("file", "not a folder"), ("dangling", "not a folder")):
        with pytest.raises(CheckpointError, match=f"{name}: output .*{reason}"):
            require_free(tmp_path / name)
    with pytest.raises(CheckpointError), staged_folder(tmp_path / "full"):
        raise AssertionError("never entered")
    assert (tmp_path / "full" / "mine").read_text() == "keep"
