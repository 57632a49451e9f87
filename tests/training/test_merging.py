"""Merging a run: which checkpoints are taken, what is refused, and that the figures are those of the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from difflm.checkpoints.convert import convert
from difflm.checkpoints.loading import load_model
from difflm.errors import CheckpointError, ConfigError
from difflm.runs import train
from difflm.training.config import (
    CheckpointingConfig,
    DataConfig,
    OptimizerConfig,
    StageConfig,
    TrainConfig,
    ValidationConfig,
)
from difflm.training.merging import merge_run
from tests.standins import write_parent, write_texts


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("merging")
    convert(write_parent(folder / "parent"), folder / "converted", block_size=8)
    config = TrainConfig(
        model=folder / "converted",
        output=folder / "run",
        data=DataConfig(paths=(write_texts(folder / "text.jsonl"),), row_length=32, validation_fraction=0.2),
        curriculum=(StageConfig(tokens=200, block_size=4), StageConfig(tokens=300, block_size=8)),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        validation=ValidationConfig(rows=4, block_sizes=(4,)),
        checkpoint=CheckpointingConfig(every_tokens=60, keep=2, keep_best=4),
        threads=1,
    )
    train(config)
    return config


def states(run: Path) -> dict[Path, dict[str, object]]:
    return {path.parent: json.loads(path.read_text()) for path in run.glob("checkpoints/*/training_state.json")}


def test_the_mean_of_the_best_of_the_last_block_size(config: TrainConfig, tmp_path: Path) -> None:
    merged = merge_run(config.output, tmp_path / "mean", best=2)
    ranked = sorted(
        (state["validation"]["8"], path)  # pyright: ignore[reportIndexIssue]
        for path, state in states(config.output).items()
        if state["block_size"] == 8
    )
    assert len(ranked) > 2, "there is something to choose from"
    assert [(figure, path) for path, figure in merged.members] == ranked[:2]
    mean, *members = (
        load_model(path).model.norm.weight.detach() for path in (tmp_path / "mean", *(p for _, p in ranked[:2]))
    )
    torch.testing.assert_close(mean, torch.stack(members).mean(0))
    assert merged.block_size == 8


def test_a_single_checkpoint_validates_as_in_the_run(config: TrainConfig, tmp_path: Path) -> None:
    merged = merge_run(config.output, tmp_path / "mean", best=1)
    assert merged.perplexity == pytest.approx(merged.members[0][1], rel=1e-6)


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(config: TrainConfig, tmp_path: Path) -> None:
    target = tmp_path / "mean"
    with pytest.raises(ConfigError, match="best: 0 is below 1"):
        merge_run(config.output, target, best=0)
    with pytest.raises(CheckpointError, match=r"no config.yaml, so not a run folder"):
        merge_run(tmp_path, target)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.yaml").write_text((config.output / "config.yaml").read_text())
    with pytest.raises(CheckpointError, match="no validated checkpoint of the final block size"):
        merge_run(bare, target)
    assert not target.exists()
