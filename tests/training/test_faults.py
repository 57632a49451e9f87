"""A disk that fails, damage to any file, pickles: what was saved stays whole, and what is broken is named."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors
import safetensors.torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from difflm.checkpoints import folders, hf, manifest
from difflm.checkpoints.manifest import verify_folder
from difflm.errors import CheckpointError, DifflmError
from difflm.runs import train
from difflm.training.config import TrainConfig
from difflm.training.config_io import dump_config
from difflm.training.state import MOMENTS, checkpoint_folders, newest_verified, read_state
from difflm.training.trainer import Trainer
from tests.training.runs import Notes, config_of


def saved(files: dict[str, Path], output: Path, **changes: Any) -> Trainer:
    """Return a trainer with one checkpoint, one step after it."""
    trainer = Trainer(config_of(files, output, **changes))
    trainer.train_step()
    trainer._save()
    trainer.train_step()
    return trainer


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def no_space(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def input_output(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.EIO, "Input/output error")


def read_only(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def from_rust(*args: Any, **kwargs: Any) -> None:
    raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("owner", "name", "fault", "reason"),
    [
        (hf, "save_file", from_rust, "No space left on device"),
        (Path, "write_text", no_space, "No space left on device"),
        (Path, "write_text", input_output, "Input/output error"),
        (os, "fsync", input_output, "Input/output error"),
        (Path, "mkdir", read_only, "Read-only file system"),
        (Path, "rename", input_output, "Input/output error"),
        (manifest, "replace_text", no_space, "No space left on device"),
        (manifest, "file_sha256", input_output, "Input/output error"),
        (folders, "_put", read_only, "Read-only file system"),
    ],
)
def test_a_failing_disk_leaves_the_old_checkpoint_whole(
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    fault: Callable[..., None],
    reason: str,
) -> None:
    trainer = saved(files, tmp_path / "run", checkpoint={"keep": 1})
    (old,) = checkpoint_folders(tmp_path / "run")
    before = content(old)
    monkeypatch.setattr(owner, name, fault)
    with pytest.raises(CheckpointError, match=rf"step-00000002: cannot be written \(.*{reason}") as caught:
        trainer._save()
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("; step-00000001 is as it was, resume from it")
    assert content(old) == before
    trainer.close()
    again = Trainer(config_of(files, tmp_path / "run", checkpoint={"keep": 1}), resume="auto")
    assert again.state.step == 1
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [old.name]


def test_the_n_th_call_that_fails_is_as_good_as_the_first(files: dict[str, Path], tmp_path: Path) -> None:
    """Every flush of a save, one after the other: each leaves the old checkpoint or a whole new one."""
    trainer = saved(files, tmp_path / "run", checkpoint={"keep": 1})
    before = content(checkpoint_folders(tmp_path / "run")[0])
    real, calls = os.fsync, 0
    for failing in range(200):
        seen = 0

        def fsync(handle: int, failing: int = failing) -> None:
            nonlocal seen
            seen += 1
            if seen == failing + 1:
                input_output()
            real(handle)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            try:
                trainer._save()
            except (CheckpointError, OSError):
                calls += 1
                found, skipped = newest_verified(tmp_path / "run")
                assert found is not None
                assert skipped == []
                assert found.name != "step-00000001" or content(found) == before
                continue
        break
    assert calls >= 8
    assert checkpoint_folders(tmp_path / "run")[-1].name == "step-00000002"


LIMITED = """
import resource, sys
from pathlib import Path
from difflm.errors import CheckpointError
from difflm.training.config_io import load_config
from difflm.training.trainer import Trainer
trainer = Trainer(load_config(Path(sys.argv[1])))
trainer.train_step()
trainer._save()
trainer.train_step()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    trainer._save()
except CheckpointError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(error)
"""


@pytest.mark.parametrize("limit", [40_000, 130_000])
def test_a_file_that_the_system_does_not_let_grow(files: dict[str, Path], tmp_path: Path, limit: int) -> None:
    """No patch: the kernel refuses to write more than `limit` bytes, in the weights and in the moments."""
    config = config_of(files, tmp_path / "run")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "config.yaml"), str(limit)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "step-00000002: cannot be written" in done.stdout
    assert "File too large" in done.stdout
    (old,) = checkpoint_folders(config.output)
    weights, moments = (old / name for name in ("model.safetensors", MOMENTS))
    assert weights.stat().st_size < 130_000 < moments.stat().st_size
    assert newest_verified(config.output) == (old, [])


def test_too_little_space_is_refused_before_the_first_step(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    with pytest.raises(
        CheckpointError, match=r"train\.output: .* has 1\.0 MiB free, a checkpoint takes 1\.\d MiB; free"
    ):
        Trainer(config_of(files, tmp_path / "run"))
    monkeypatch.undo()
    Trainer(config_of(files, tmp_path / "run"), resume="auto").close()


def test_too_little_space_later_leaves_the_old(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = saved(files, tmp_path / "run")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    with pytest.raises(CheckpointError, match="MiB free"):
        trainer._save()
    monkeypatch.undo()
    assert [read_state(each).step for each in checkpoint_folders(tmp_path / "run")] == [1]


@pytest.fixture(scope="module")
def two(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Return the configuration of a run with two checkpoints, not finished."""
    trainer = saved(files, tmp_path_factory.mktemp("two") / "run")
    trainer._save()
    trainer.close()
    return trainer.config


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_bit_or_a_tail_lost_in_any_file_is_found_on_resume(two: TrainConfig, data: st.DataObject) -> None:
    """Any file of the newest checkpoint, anywhere: the one before is taken, and the file is named."""
    old, new = checkpoint_folders(two.output)
    names = sorted(content(new))
    name = data.draw(st.sampled_from(names))
    path = new / name
    whole = path.read_bytes()
    position = data.draw(st.integers(0, 8 * len(whole) - 1))
    damaged = bytearray(whole)
    if data.draw(st.booleans()):
        damaged[position // 8] ^= 1 << position % 8
    else:
        del damaged[position // 8 :]
    try:
        path.write_bytes(damaged)
        found, skipped = newest_verified(two.output)
    finally:
        path.write_bytes(whole)
    assert found == old
    assert len(skipped) == 1
    assert str(path) in skipped[0]


def test_every_file_of_a_checkpoint_is_recorded(two: TrainConfig) -> None:
    """Weights, moments, state, configuration, tokenizer and card; and a missing one is found, too."""
    new = checkpoint_folders(two.output)[-1]
    names = set(content(new))
    assert {"model.safetensors", MOMENTS, "training_state.json", "config.json", "tokenizer.json", "README.md"} < names
    assert set(verify_folder(new)) == names - {"manifest.json"}
    for name in names:
        (new / name).rename(new.parent / "away")
        try:
            found, skipped = newest_verified(two.output)
        finally:
            (new.parent / "away").rename(new / name)
        assert found != new
        assert f"{new / name}: missing" in skipped[0]


def test_resuming_after_damage_tells_and_uses_the_older_one(two: TrainConfig, tmp_path: Path) -> None:
    shutil.copytree(two.output, tmp_path / "copy")
    config = dataclasses.replace(two, output=tmp_path / "copy")
    old, new = checkpoint_folders(config.output)
    (new / "config.json").write_text("{}")
    notes = Notes()
    trainer = Trainer(config, resume="auto", observer=notes)
    assert trainer.state.step == read_state(old).step == 1
    trainer._describe()
    assert any(
        line.startswith(f"skipped a checkpoint: {new / 'config.json'}: damaged (it has 2 ") for line in notes.lines
    )
    assert (new / "config.json").read_text() == "{}"
    trainer.close()
    (old / MOMENTS).unlink()
    with pytest.raises(
        CheckpointError, match=r"no checkpoint can be resumed: .*config\.json.*optimizer\.safetensors: missing"
    ):
        train(config, resume="auto")


class Bomb:
    """A pickle that leaves a trace when it is opened."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.trace,)


def _bombs(two: TrainConfig) -> Iterator[str]:
    yield from sorted(content(checkpoint_folders(two.output)[-1]))
    yield from ("optimizer.pt", "optimizer.bin", "pytorch_model.bin", "training_args.bin", "rng_state.pth", "model.pkl")


def test_no_file_of_a_checkpoint_is_ever_unpickled(two: TrainConfig, tmp_path: Path) -> None:
    """A pickle in the place of each file, even one that the manifest vouches for."""
    trace = tmp_path / "trace"
    bomb = pickle.dumps(Bomb(trace))
    pickle.loads(bomb)
    assert trace.exists()
    trace.unlink()
    for number, name in enumerate(_bombs(two)):
        for sealed in (False, True):
            output = tmp_path / f"run-{number}-{sealed}"
            shutil.copytree(two.output, output)
            new = checkpoint_folders(output)[-1]
            (new / name).write_bytes(bomb)
            if sealed and name != "manifest.json":
                manifest.write_manifest(new)
            with contextlib.suppress(DifflmError):
                Trainer(dataclasses.replace(two, output=output), resume="auto").close()
            assert not trace.exists(), name
            shutil.rmtree(output)
