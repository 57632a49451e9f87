"""Merging a run: which checkpoints are taken, what is refused, and that the figures are those of the run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from difflm.checkpoints.convert import convert
from difflm.checkpoints.loading import load_model
from difflm.errors import CheckpointError
from difflm.runs import train
from difflm.training.config import (
    CheckpointingConfig,
    DataConfig,
    OptimizerConfig,
    StageConfig,
    TrainConfig,
    ValidationConfig,
)
from difflm.training.merge_methods import Best, Ema, Window
from difflm.training.merging import MergedRun, NotMerged, compare_merges, merge_run
from tests.standins import write_parent, write_texts


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("merging")
    convert(write_parent(folder / "parent"), folder / "converted", block_size=8)
    config = TrainConfig(
        model=folder / "converted",
        output=folder / "run",
        data=DataConfig(paths=(write_texts(folder / "text.jsonl"),), row_length=32, validation_fraction=0.2),
        # The first stage has the last block size, too: its checkpoints are of another part of the run.
        curriculum=(
            StageConfig(tokens=200, block_size=8),
            StageConfig(tokens=100, block_size=4),
            StageConfig(tokens=400, block_size=8),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        validation=ValidationConfig(rows=4, block_sizes=(4,)),
        checkpoint=CheckpointingConfig(every_tokens=60, keep=20, keep_best=4),
        threads=1,
    )
    train(config)
    return config


def states(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return (folder, state) of the checkpoints of the last stage, oldest first."""
    found = [
        (path.parent, json.loads(path.read_text())) for path in sorted(run.glob("checkpoints/*/training_state.json"))
    ]
    return [(path, state) for path, state in found if state["stage"] == 2]


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return {name: each.detach() for name, each in load_model(folder).model.named_parameters()}


def test_the_mean_of_the_best_of_the_last_block_size(config: TrainConfig, tmp_path: Path) -> None:
    merged = merge_run(config.output, tmp_path / "mean", method=Best(2))
    ranked = sorted((state["validation"]["8"], path) for path, state in states(config.output))
    assert len(ranked) > 2, "there is something to choose from"
    assert [(each.perplexity, each.folder) for each in merged.members] == ranked[:2]
    mean, *members = (
        load_model(path).model.norm.weight.detach() for path in (tmp_path / "mean", *(p for _, p in ranked[:2]))
    )
    torch.testing.assert_close(mean, torch.stack(members).mean(0))
    assert (merged.block_size, merged.method) == (8, "best")


def test_an_earlier_stage_of_the_same_block_size_is_no_candidate(config: TrainConfig, tmp_path: Path) -> None:
    folders = [path for path, _ in states(config.output)]
    kept = len(list(config.output.glob("checkpoints/step-*")))
    assert kept > len(folders) + 1
    merged = merge_run(config.output, tmp_path / "all", method=Ema(0.5))
    assert [each.folder for each in merged.members] == folders


def test_a_single_checkpoint_validates_as_in_the_run(config: TrainConfig, tmp_path: Path) -> None:
    merged = merge_run(config.output, tmp_path / "mean", method=Best(1))
    assert merged.perplexity == pytest.approx(merged.members[0].perplexity, rel=1e-6)


@pytest.mark.parametrize("method", [Window(3), Window(3, "sqrt"), Ema(0.6)])
def test_weighted_methods_write_their_weighted_mean(method: Window | Ema, config: TrainConfig, tmp_path: Path) -> None:
    merged = merge_run(config.output, tmp_path / "mean", method=method)
    folders = [path for path, _ in states(config.output)]
    expected = folders[-3:] if isinstance(method, Window) else folders
    assert [each.folder for each in merged.members] == expected
    assert sum(each.weight for each in merged.members) == pytest.approx(1.0)
    mean, members = parameters(tmp_path / "mean"), [parameters(each.folder) for each in merged.members]
    for name, value in mean.items():
        slow = sum(each.weight * member[name].double() for each, member in zip(merged.members, members, strict=True))
        assert isinstance(slow, torch.Tensor)
        torch.testing.assert_close(value.double(), slow, atol=1e-6, rtol=1e-6)
    record = load_model(tmp_path / "mean").config.raw["difflm"]["merged"]
    assert [each["weight"] for each in record] == pytest.approx([each.weight for each in merged.members])


def test_the_comparison_gives_the_figures_of_the_merges_and_writes_nothing(config: TrainConfig, tmp_path: Path) -> None:
    methods = [Best(2), Window(3), Ema(0.6), Window(90)]
    before = sorted(config.output.rglob("*"))
    *found, refused = compare_merges(config.output, methods)
    assert sorted(config.output.rglob("*")) == before
    for index, (each, method) in enumerate(zip(found, methods, strict=False)):
        assert isinstance(each, MergedRun)
        written = merge_run(config.output, tmp_path / str(index), method=method)
        assert written.perplexity == pytest.approx(each.perplexity, rel=1e-6)
        assert replace(written, perplexity=each.perplexity) == each
    assert isinstance(refused, NotMerged)
    assert "window of 90" in refused.reason


def test_a_checkpoint_that_the_run_did_not_validate_is_measured(config: TrainConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(config.output, run)
    last = states(run)[-1][0]
    known = json.loads((last / "training_state.json").read_text())
    (last / "training_state.json").write_text(json.dumps(known | {"validation": {}}))
    (last / "manifest.json").unlink(missing_ok=True)
    merged = merge_run(run, tmp_path / "mean", method=Window(1))
    assert merged.members[0].perplexity == pytest.approx(known["validation"]["8"], rel=1e-6)


def test_a_damaged_member_is_named_and_nothing_is_written(config: TrainConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(config.output, run)
    weights = states(run)[-1][0] / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged .*; move .* away to merge without it"):
        merge_run(run, tmp_path / "mean", method=Window(2))
    assert not (tmp_path / "mean").exists()


def test_runs_without_validation_data_are_merged_by_order(config: TrainConfig, tmp_path: Path) -> None:
    bare = replace(config, output=tmp_path / "run", data=replace(config.data, validation_fraction=0.0))
    train(bare)
    merged = merge_run(bare.output, tmp_path / "mean", method=Window(2))
    assert merged.perplexity is None
    assert [each.perplexity for each in merged.members] == [None, None]
    with pytest.raises(CheckpointError, match="no validated checkpoint of the final block size"):
        merge_run(bare.output, tmp_path / "best")


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(config: TrainConfig, tmp_path: Path) -> None:
    target = tmp_path / "mean"
    with pytest.raises(CheckpointError, match=r"no config.yaml, so not a run folder"):
        merge_run(tmp_path, target)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.yaml").write_text((config.output / "config.yaml").read_text())
    with pytest.raises(CheckpointError, match="no validated checkpoint of the final block size"):
        merge_run(bare, target)
    assert not target.exists()
