"""Run folders: the newest whole checkpoint, the right candidates, nothing needed is pruned, nothing damaged is used."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from difflm.checkpoints.manifest import MANIFEST, read_manifest, seal_folder, verify_folder
from difflm.errors import CheckpointError
from difflm.models.adapters import AdapterSite, adapter_parameters, attach_adapter
from difflm.models.transformer import Transformer
from difflm.training import state as run_state
from difflm.training.state import (
    MOMENTS,
    STATE,
    TrainingState,
    best_checkpoints,
    checkpoint_folders,
    newest_verified,
    prune,
    read_state,
    require_space,
)
from tests.decode.tiny import architecture


def write(run: Path, step: int, block_size: int | None, perplexity: float | None) -> Path:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    state = TrainingState(
        step=step,
        block_size=block_size,
        validation={} if perplexity is None or block_size is None else {str(block_size): perplexity},
        ar_perplexity=perplexity,
    )
    (folder / STATE).write_text(json.dumps(asdict(state)))
    (folder / MOMENTS).write_bytes(b"moments")
    seal_folder(folder)
    return folder


def test_incomplete_folders_are_not_checkpoints(tmp_path: Path) -> None:
    done = write(tmp_path, 3, 8, 2.0)
    (tmp_path / "checkpoints" / "step-00000004").mkdir()
    (tmp_path / "checkpoints" / ".step-00000005.partial").mkdir()
    assert checkpoint_folders(tmp_path) == [done]


def test_candidates_have_the_final_block_size_and_a_perplexity(tmp_path: Path) -> None:
    write(tmp_path, 1, 4, 1.0)
    second, third = write(tmp_path, 2, 8, 3.0), write(tmp_path, 3, 8, 2.0)
    write(tmp_path, 4, 8, None)
    write(tmp_path, 5, 8, float("nan"))
    assert best_checkpoints(tmp_path, block_size=8, count=2) == [third, second]
    assert best_checkpoints(tmp_path, block_size=8, count=1) == [third]
    assert best_checkpoints(tmp_path, block_size=16, count=2) == []


def test_pruning_keeps_the_newest_and_the_candidates(tmp_path: Path) -> None:
    folders = [write(tmp_path, step, 8, value) for step, value in enumerate((2.0, 5.0, 1.5, 4.0, 1.0), start=1)]
    assert prune(tmp_path, folders[-1], keep=2, keep_best=3, block_size=8) == []
    assert checkpoint_folders(tmp_path) == [folders[0], folders[2], folders[3], folders[4]]
    assert [MOMENTS in verify_folder(each) for each in checkpoint_folders(tmp_path)] == [False, False, True, True]
    assert newest_verified(tmp_path) == (folders[4], [])


def test_damaged_checkpoints_are_neither_counted_nor_deleted(tmp_path: Path) -> None:
    """With the newest two damaged, a prune that counted them would leave nothing to resume from."""
    whole, cut, wrong, new = (write(tmp_path, step, 8, None) for step in (1, 2, 3, 4))
    (cut / MOMENTS).write_bytes(b"momen")
    (wrong / STATE).write_text("{}")
    abandoned = write(tmp_path, 9, 8, 1.0)  # of a time before the run went back to step 1
    prune(tmp_path, new, keep=2, keep_best=1, block_size=8)
    assert checkpoint_folders(tmp_path) == [whole, cut, wrong, new, abandoned]
    prune(tmp_path, new, keep=1, keep_best=0, block_size=8)
    assert checkpoint_folders(tmp_path) == [cut, wrong, new, abandoned]


def test_a_deletion_that_fails_is_told_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, middle, new = (write(tmp_path, step, 8, None) for step in (1, 2, 3))

    def failing(folder: Path) -> None:
        if folder == old:
            raise OSError(30, "Read-only file system")
        shutil.rmtree(folder)

    monkeypatch.setattr(run_state, "remove_folder", failing)
    (failure,) = prune(tmp_path, new, keep=1, keep_best=0, block_size=8)
    assert failure == f"{old}: cannot be deleted (Read-only file system); it stays"
    assert checkpoint_folders(tmp_path) == [old, new]
    assert not middle.exists()


def test_the_newest_whole_checkpoint_is_found_and_skipped_ones_are_named(tmp_path: Path) -> None:
    assert newest_verified(tmp_path) == (None, [])
    first, second, third, fourth = (write(tmp_path, step, 8, None) for step in (1, 2, 3, 4))
    (fourth / MANIFEST).unlink()
    (third / MOMENTS).write_bytes(b"momentS")
    prune(tmp_path, second, keep=1, keep_best=0, block_size=8)
    write(tmp_path, 1, 8, None)
    found, skipped = newest_verified(tmp_path)
    assert found == second
    assert [str(fourth / MANIFEST) in skipped[0], str(third / MOMENTS) in skipped[1]] == [True, True]
    assert third.exists()
    assert fourth.exists()
    for folder in (first, second):
        (folder / STATE).write_text("{")
    with pytest.raises(CheckpointError, match=r"no checkpoint can be resumed: .* and 1 more; restore one") as caught:
        newest_verified(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_merge_candidate_without_moments_is_not_resumed(tmp_path: Path) -> None:
    good, new = write(tmp_path, 1, 8, 1.0), write(tmp_path, 2, 8, 2.0)
    prune(tmp_path, new, keep=1, keep_best=1, block_size=8)
    assert MOMENTS not in read_manifest(good)
    (new / STATE).unlink()
    with pytest.raises(CheckpointError, match=r"step-00000001: has no optimizer\.safetensors any more"):
        newest_verified(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"step": 1, "unknown": 2}', "unknown field 'unknown'"),
        ('{"step": "1"}', "step is '1', expected a whole number of at least 0"),
        ('{"step": -1}', "step is -1, expected a whole number"),
        ('{"step": true}', "step is True, expected a whole number"),
        ('{"tokens": 1.5}', "tokens is 1.5, expected a whole number"),
        ('{"block_size": "row"}', "block_size is 'row', expected a whole number of at least 0, or null"),
        ('{"data": null}', "data is None, expected a string"),
        ('{"validation": {"8": "low"}}', "validation is .* expected an object of numbers"),
        ('{"seconds": []}', r"seconds is \[\], expected a number"),
        ("[1]", "holds a JSON list, expected an object"),
        ("{", "cannot be read"),
    ],
)
def test_a_state_of_wrong_types_names_the_field(tmp_path: Path, text: str, message: str) -> None:
    folder = write(tmp_path, 1, 8, 2.0)
    (folder / STATE).write_text(text)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_state(folder)
    assert str(folder / STATE) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_state_is_read_back_as_it_was(tmp_path: Path) -> None:
    state = TrainingState(step=3, block_size=None, validation={"8": 2.5}, ar_perplexity=1.0, seconds=4)
    (tmp_path / STATE).write_text(json.dumps(asdict(state)))
    assert read_state(tmp_path) == state


def test_an_earlier_stage_is_no_candidate_however_good_it_is(tmp_path: Path) -> None:
    early, late = write(tmp_path, 1, 4, 1.0), write(tmp_path, 2, 8, 3.0)
    state = json.loads((early / STATE).read_text())
    (early / STATE).write_text(json.dumps(state | {"validation": {"4": 1.0, "8": 1.5}}))
    assert best_checkpoints(tmp_path, block_size=8, count=2) == [late]


def test_an_earlier_stage_of_the_last_block_size_is_no_candidate(tmp_path: Path) -> None:
    """The report's ladder passes block size 32 on its way up and ends with it."""
    early, late = write(tmp_path, 1, 8, 1.0), write(tmp_path, 2, 8, 3.0)
    for number, folder in enumerate((early, late)):
        state = json.loads((folder / STATE).read_text())
        (folder / STATE).write_text(json.dumps(state | {"stage": 2 * number}))
        seal_folder(folder)
    assert best_checkpoints(tmp_path, block_size=8, count=1, first_stage=2) == [late]
    newest = write(tmp_path, 3, 8, None)
    prune(tmp_path, newest, keep=1, keep_best=1, block_size=8, first_stage=2)
    assert checkpoint_folders(tmp_path) == [late, newest]


def test_space_is_checked_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    model: Any = SimpleNamespace(model=torch.nn.Linear(512, 512, bias=False), path=tmp_path, adapter=None)
    optimizer: Any = SimpleNamespace(named_state=lambda: {"a": torch.zeros(1024, 512)})
    needed = 3 * 512 * 512 * 4 + 2**20 + 2
    for free, message in ((needed - 1, r"4\.0 MiB free, a checkpoint takes 4\.0 MiB"), (2**20, r"1\.0 MiB free")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        with pytest.raises(CheckpointError, match=rf"train\.output: .*{message}.*train\.checkpoint\.keep"):
            require_space(tmp_path, model, optimizer)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed))
    require_space(tmp_path, model, optimizer)


def test_a_run_with_an_adapter_needs_the_space_of_its_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Transformer(architecture())
    attach_adapter(base, [AdapterSite(weights=("layers.0.mlp.up",), rank=2, alpha=4.0)])
    model: Any = SimpleNamespace(model=base, path=tmp_path, adapter=object())
    (tmp_path / "tokenizer.json").write_text("{}")
    optimizer: Any = SimpleNamespace(named_state=dict)
    needed = 4 * sum(each.numel() for each in adapter_parameters(base).values()) + 2**20
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed))
    require_space(tmp_path, model, optimizer)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
    with pytest.raises(CheckpointError, match="a checkpoint takes"):
        require_space(tmp_path, model, optimizer)
