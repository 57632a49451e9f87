"""Merging a run: which checkpoints are taken, what is refused, and that the figures are those of the run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import difflm
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
from difflm.training.merging import (
    MergedRun,
    NotMerged,
    best_drafting,
    compare_merges,
    finish_drafting,
    merge_run,
    only_drafts,
)
from difflm.training.trainer import Trainer
from tests.checkpoints.adapters import same_adapter
from tests.standins import write_parent, write_texts
from tests.training.test_drafts import drafting_run


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


@pytest.fixture(scope="module")
def drafting(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an adapter for noisy rows: checkpoints of two stages, each validated."""
    folder = tmp_path_factory.mktemp("drafting") / "run"
    ladder = [{"block_size": 2, "tokens": 400}, {"block_size": 4, "tokens": 800}]
    Trainer(drafting_run(files, folder, curriculum=ladder)).train()
    return folder


def with_figures(drafting: Path, folder: Path, figures: dict[int, float | None]) -> list[Path]:
    """Copy a run with other tokens per cycle; return its checkpoints of the last stage.

    Args:
        drafting: the run.
        folder: of the copy.
        figures: number of a checkpoint of the last stage -> the figure of its step; of the others none is recorded.
    """
    shutil.copytree(drafting, folder)
    found = [
        (path.parent, json.loads(path.read_text())) for path in sorted(folder.glob("checkpoints/*/training_state.json"))
    ]
    last = [(path, state["step"]) for path, state in found if state["stage"] == 1]
    assert len(found) > len(last) > 2
    rows = [
        {"kind": "validation", "step": found[0][1]["step"], "drafts": {"agreement": {}, "tokens_per_cycle": 99.0}},
        *(
            {"kind": "validation", "step": last[number][1], "drafts": {"agreement": {}, "tokens_per_cycle": figure}}
            for number, figure in figures.items()
        ),
        {"kind": "train", "step": last[0][1], "loss": 1.0},
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return [path for path, _ in last]


def test_a_drafting_run_gives_the_checkpoint_that_drafts_best(drafting: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (drafting / "metrics.jsonl").read_text().splitlines()]
    known = {row["step"]: row["drafts"]["tokens_per_cycle"] for row in rows if row["kind"] == "validation"}
    states = {path.parent: json.loads(path.read_text()) for path in drafting.glob("checkpoints/*/training_state.json")}
    slow = {path: known[state["step"]] for path, state in states.items() if state["stage"] == 1}
    assert only_drafts(drafting)
    found = finish_drafting(drafting, tmp_path / "drafter")
    assert found.tokens_per_cycle == slow[found.folder] == max(slow.values())
    assert (found.measured, found.unmeasured) == (len(slow), 0)
    assert found.reason == (
        f"{found.tokens_per_cycle:.3f} tokens per cycle on validation rows, the most of {found.measured}"
    )
    assert only_drafts(tmp_path / "drafter")
    assert only_drafts(found.folder)
    one, two = load_model(found.folder), load_model(tmp_path / "drafter")
    assert same_adapter(one, two)
    for params in (
        difflm.SamplingParams(max_new_tokens=24, ignore_eos=True),
        difflm.SamplingParams(max_new_tokens=24, temperature=1.0, seed=3),
    ):
        expected, written = (difflm.generate(each, ["the fox", "a"], params) for each in (one, two))
        assert [each.tokens for each in written] == [each.tokens for each in expected]
        assert [each.drafts for each in written] == [each.drafts for each in expected]


@pytest.mark.parametrize(
    ("figures", "chosen", "told"),
    [
        ({0: 2.5, 1: 3.25, 2: 2.0}, 1, "3.250 tokens per cycle on validation rows, the most of 3"),
        ({0: 2.5}, 0, "2.500 tokens per cycle on validation rows, the most of 1, {rest} not measured"),
        ({0: 2.5, 1: 2.5}, 1, "2.500 tokens per cycle"),
        ({0: None, 1: float("nan")}, -1, "the last one: the validation rows of metrics.jsonl have drafts.tokens_per_c"),
        ({}, -1, "the last one: the validation rows of metrics.jsonl have drafts.tokens_per_cycle of no checkpoint"),
    ],
)
def test_the_checkpoint_that_is_taken_and_why(
    figures: dict[int, float | None], chosen: int, told: str, drafting: Path, tmp_path: Path
) -> None:
    folders = with_figures(drafting, tmp_path / "run", figures)
    found = best_drafting(tmp_path / "run")
    assert found.folder == folders[chosen]
    assert found.reason.startswith(told.format(rest=len(folders) - 1))
    assert (found.measured + found.unmeasured, found.tokens_per_cycle is None) == (len(folders), chosen == -1)


def test_a_drafting_run_without_figures_or_checkpoints(drafting: Path, tmp_path: Path) -> None:
    folders = with_figures(drafting, tmp_path / "run", {})
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert best_drafting(tmp_path / "run").folder == folders[-1]
    for folder in folders:
        shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="no checkpoint of the final block size; train on, or name one"):
        best_drafting(tmp_path / "run")
    with pytest.raises(CheckpointError, match="no checkpoint of the final block size"):
        finish_drafting(tmp_path / "run", tmp_path / "drafter")
    assert not (tmp_path / "drafter").exists()


def test_what_does_not_only_draft(config: TrainConfig, files: dict[str, Path], tmp_path: Path) -> None:
    assert not only_drafts(config.output)
    assert not only_drafts(states(config.output)[0][0])
    assert not only_drafts(files["shift"])
    assert not only_drafts(tmp_path / "nothing")
