"""Output folders appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from difflm.checkpoints.folders import clear_leftovers, remove_folder, replace_text, require_free, staged_folder
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


def test_a_folder_gives_way_only_to_a_finished_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").touch()
    for error in (RuntimeError, OSError(5, "Input/output error")):
        with pytest.raises((RuntimeError, CheckpointError)), staged_folder(target, replace=True):
            raise error
        assert names(target) == ["old"]

    def refuse(stage: Path) -> None:
        assert names(target) == ["old"]
        raise CheckpointError("not what was written")

    with pytest.raises(CheckpointError, match="not what"), staged_folder(target, replace=True, seal=refuse) as stage:
        (stage / "new").touch()
    assert names(target) == ["old"]
    rename = Path.rename

    def failing(self: Path, other: Path) -> Path:
        if self.name == ".out.partial":
            raise OSError(28, "No space left on device")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(CheckpointError, match="No space left"), staged_folder(target, replace=True):
        pass
    monkeypatch.undo()
    assert names(target) == ["old"]
    with staged_folder(target, replace=True) as stage:
        (stage / "new").touch()
    assert names(target) == ["new"]
    assert names(tmp_path) == ["out"]


def test_everything_is_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    opened: dict[int, str] = {}
    real_open, real_rename = os.open, Path.rename

    def spy_open(path: Path, flags: int, *args: int, **options: int) -> int:
        handle = real_open(path, flags, *args, **options)
        opened[handle] = Path(path).name
        return handle

    def spy_rename(self: Path, target: Path) -> Path:
        done.append(f"rename {self.name}")
        return real_rename(self, target)

    monkeypatch.setattr(os, "open", spy_open)
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(opened[handle]))
    monkeypatch.setattr(Path, "rename", spy_rename)
    with staged_folder(tmp_path / "out", seal=lambda stage: done.append("seal")) as stage:
        (stage / "a").touch()
    assert done == ["a", ".out.partial", "seal", "rename .out.partial", tmp_path.name]
    done.clear()
    replace_text(tmp_path / "text", "new")
    assert done == [".text.partial", tmp_path.name]


def test_leftovers_of_killed_processes_go_and_what_had_given_way_comes_back(tmp_path: Path) -> None:
    for name in (".a.partial", ".b.deleting", ".c.replaced", "c", ".d.replaced", ".d.partial", "e"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    clear_leftovers(tmp_path)
    assert names(tmp_path) == ["c", "d", "e"]
    assert names(tmp_path / "c") == ["c"]
    assert names(tmp_path / "d") == [".d.replaced"]


def test_a_removed_folder_loses_its_name_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").touch()
    real = shutil.rmtree

    def failing(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(5, "Input/output error")
        real(path, ignore_errors=True)

    monkeypatch.setattr(shutil, "rmtree", failing)
    with pytest.raises(OSError, match="Input/output"):
        remove_folder(tmp_path / "a")
    assert names(tmp_path) == [".a.deleting"]


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
