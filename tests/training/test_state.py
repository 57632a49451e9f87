"""Run folders: complete checkpoints only, the right candidates, nothing needed is pruned."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from difflm.errors import CheckpointError
from difflm.training.state import (
    MOMENTS,
    STATE,
    TrainingState,
    best_checkpoints,
    checkpoint_folders,
    prune,
    read_state,
)


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
    return folder


def test_incomplete_folders_are_not_checkpoints(tmp_path: Path) -> None:
    done = write(tmp_path, 3, 8, 2.0)
    (tmp_path / "checkpoints" / "step-00000004").mkdir()
    (tmp_path / "checkpoints" / ".step-00000005.writing").mkdir()
    assert checkpoint_folders(tmp_path) == [done]


def test_candidates_have_the_final_block_size_and_a_perplexity(tmp_path: Path) -> None:
    write(tmp_path, 1, 4, 1.0)
    second, third = write(tmp_path, 2, 8, 3.0), write(tmp_path, 3, 8, 2.0)
    write(tmp_path, 4, 8, None)
    assert best_checkpoints(tmp_path, block_size=8, count=2) == [third, second]
    assert best_checkpoints(tmp_path, block_size=8, count=1) == [third]
    assert best_checkpoints(tmp_path, block_size=16, count=2) == []


def test_pruning_keeps_the_newest_and_the_candidates(tmp_path: Path) -> None:
    folders = [write(tmp_path, step, 8, value) for step, value in enumerate((2.0, 5.0, 1.5, 4.0, 3.0), start=1)]
    prune(tmp_path, keep=1, keep_best=2, block_size=8)
    assert checkpoint_folders(tmp_path) == [folders[0], folders[2], folders[4]]
    assert [(folder / MOMENTS).exists() for folder in checkpoint_folders(tmp_path)] == [False, False, True]


def test_damaged_state_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, 1, 8, 2.0)
    (folder / STATE).write_text('{"step": 1, "unknown": 2}')
    with pytest.raises(CheckpointError, match=STATE):
        read_state(folder)


def test_an_earlier_stage_is_no_candidate_however_good_it_is(tmp_path: Path) -> None:
    early, late = write(tmp_path, 1, 4, 1.0), write(tmp_path, 2, 8, 3.0)
    state = json.loads((early / STATE).read_text())
    (early / STATE).write_text(json.dumps(state | {"validation": {"4": 1.0, "8": 1.5}}))
    assert best_checkpoints(tmp_path, block_size=8, count=2) == [late]
