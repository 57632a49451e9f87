"""The trainer on a tiny checkpoint: sums, accumulation, resume, curriculum, checkpoints, merge."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from difflm.checkpoints.loading import load_model
from difflm.diffusion.objectives import BlockDiffusion
from difflm.errors import CheckpointError, ConfigError
from difflm.plots import read_rows
from difflm.runs import train
from difflm.training.merge_methods import Best
from difflm.training.merging import merge_run
from difflm.training.state import MOMENTS, best_checkpoints, checkpoint_folders, read_state
from difflm.training.trainer import Trainer
from tests.training.runs import config_of


def gradients(trainer: Trainer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the gradient of one step as the optimiser sees it (lr 0: the weights stay), and the metrics."""
    found: dict[str, torch.Tensor] = {}
    clip = trainer.optimizer.clip

    def spy() -> torch.Tensor:
        found.update(
            {name: p.grad.clone() for name, p in trainer.loaded.model.named_parameters() if p.grad is not None}
        )
        return clip()

    trainer.optimizer.clip = spy  # type: ignore[method-assign]
    return found, trainer.train_step()


@pytest.mark.parametrize("weighting", ["elbo", "uniform"])
def test_accumulation_equals_the_large_batch(files: dict[str, Path], tmp_path: Path, weighting: str) -> None:
    objective = {"kind": "block_diffusion", "weighting": weighting, "ar_weight": 0.5, "complementary": True}
    results = []
    for index, (rows, accumulation) in enumerate([(6, 1), (2, 3), (1, 6)]):
        config = config_of(
            files,
            tmp_path / str(index),
            model="shift",
            objective=objective,
            rows_per_batch=rows,
            accumulation=accumulation,
        )
        results.append(gradients(Trainer(config)))
    large, metrics = results[0]
    for small, other in results[1:]:
        assert other["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
        assert other["num_tokens"] == metrics["num_tokens"]
        for name, gradient in large.items():
            assert torch.allclose(gradient, small[name], atol=1e-6, rtol=1e-4), name


def test_one_step_lowers_the_loss_of_the_same_rows(files: dict[str, Path], tmp_path: Path) -> None:
    """A sign error would raise it; the loss itself is positive."""
    config = config_of(files, tmp_path / "run", rows_per_batch=4, lr_schedule={"kind": "constant"})
    trainer = Trainer(config)
    state = trainer.loader.state
    first = trainer.train_step()
    trainer.loader._epoch, trainer.loader._position = state.epoch, state.position
    again = trainer.train_step()
    assert 0 < again["loss"] < first["loss"]


def test_resume_continues_as_if_nothing_had_happened(files: dict[str, Path], tmp_path: Path) -> None:
    ladder = [{"block_size": 1, "tokens": 300}, {"block_size": "row", "tokens": 300}, {"block_size": 8, "tokens": 400}]
    noise = {"sigma": 0.1, "stages": 2}
    options: dict[str, Any] = {
        "curriculum": ladder, "embedding_noise": noise, "checkpoint": {"every_tokens": 350, "keep": 20}
    }  # fmt: skip
    whole = config_of(files, tmp_path / "whole", **options)
    train(whole)
    part = config_of(files, tmp_path / "part", **options)
    trainer = Trainer(part)
    trainer._validate()
    while trainer.state.tokens < 500:
        before = trainer.state.tokens
        trainer._record(trainer.train_step())
        trainer._after_step(before)
    last = checkpoint_folders(part.output)[-1]
    assert read_state(last).step < trainer.state.step  # the interruption lost steps after the last checkpoint
    trainer.close()
    train(part, resume="auto")
    for kind in ("train", "validation"):
        mine, theirs = (
            [
                {key: row[key] for key in row if key not in ("seconds", "tokens_per_second", "memory_bytes")}
                for row in read_rows(run.output / "metrics.jsonl")
                if row["kind"] == kind
            ]
            for run in (whole, part)
        )
        assert mine == theirs
    one, other = (load_model(checkpoint_folders(run.output)[-1]).model.state_dict() for run in (whole, part))
    assert all(torch.equal(one[name], other[name]) for name in one)
    sizes = [row["block_size"] for row in read_rows(whole.output / "metrics.jsonl") if row["kind"] == "train"]
    assert sizes[0] == 1
    assert 64 in sizes
    assert sizes[-1] == 8


def test_checkpoints_load_as_models_and_only_the_newest_keeps_moments(files: dict[str, Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "curriculum": [{"block_size": 4, "tokens": 400}, {"block_size": 8, "tokens": 800}],
        "checkpoint": {"every_tokens": 150, "keep": 1, "keep_best": 2},
        "validation": {"rows": 3, "block_sizes": [4]},
    }
    config = config_of(files, tmp_path / "run", **options)
    final = train(dataclasses.replace(config, recipe="ladder"))
    folders = checkpoint_folders(config.output)
    assert json.loads((final / "config.json").read_text())["difflm"]["recipe"] == "ladder"
    assert "ladder" in (final / "README.md").read_text()
    assert final == folders[-1]
    assert [folder for folder in folders if (folder / MOMENTS).exists()] == [final]
    best = best_checkpoints(config.output, block_size=8, count=2)
    assert set(folders) == {final, *best}
    assert all(read_state(folder).block_size == 8 for folder in best)
    loaded = load_model(final)
    assert loaded.config.block_size == 8
    assert loaded.tokenizer is not None
    merged = merge_run(config.output, tmp_path / "merged", method=Best(2))
    assert merged.block_size == 8
    assert [each.folder for each in merged.members] == best
    mean = load_model(tmp_path / "merged").model
    members = [load_model(path).model for path in best]
    expected = torch.stack([each.embedding.weight for each in members]).mean(0)
    assert torch.allclose(mean.embedding.weight, expected, atol=1e-7)
    assert merged.perplexity is not None
    assert merged.perplexity > 1


def test_bfloat16_steps_follow_float32_ones(files: dict[str, Path], tmp_path: Path) -> None:
    norms = []
    for dtype in ("float32", "bfloat16"):
        trainer = Trainer(config_of(files, tmp_path / dtype, dtype=dtype, rows_per_batch=2, accumulation=2))
        metrics = trainer.train_step()
        norms.append((metrics["loss"], metrics["grad_norm"]))
        assert all(p.dtype == torch.float32 for p in trainer.loaded.model.parameters())
    assert norms[1] == pytest.approx(norms[0], rel=3e-2)


def test_the_mask_row_can_learn_at_another_rate(files: dict[str, Path], tmp_path: Path) -> None:
    moved = []
    for scale in (1.0, 3.0):
        config = config_of(
            files, tmp_path / str(scale), optimizer={"learning_rate": 1e-3, "mask_row_lr_scale": scale},
            lr_schedule={"kind": "constant"},
        )  # fmt: skip
        trainer = Trainer(config)
        before = trainer.loaded.model.embedding.weight.detach().clone()
        trainer.train_step()
        moved.append((trainer.loaded.model.embedding.weight.detach() - before, trainer.mask_id))
    (one, mask), (three, _) = moved
    assert torch.allclose(three[mask], 3 * one[mask], rtol=1e-3)
    rest = torch.arange(one.shape[0]) != mask
    assert torch.equal(one[rest], three[rest])


def test_next_token_training_needs_no_mask_and_validates_ar(files: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(
        files,
        tmp_path / "ar",
        model="parent",
        objective={"kind": "next_token"},
        curriculum=[{"tokens": 500}],
        checkpoint={"every_tokens": 200},
    )
    train(config)
    rows = read_rows(config.output / "metrics.jsonl")
    figures = [row["ar_perplexity"] for row in rows if row["kind"] == "validation"]
    assert figures[-1] < figures[0]
    merged = merge_run(config.output, tmp_path / "ar-merged", method=Best(2))
    assert merged.block_size is None
    assert merged.perplexity == pytest.approx(min(figures), rel=0.2)


def test_the_objective_takes_the_checkpoint_s_parametrisation(files: dict[str, Path], tmp_path: Path) -> None:
    trainer = Trainer(config_of(files, tmp_path / "run", model="shift"))
    objective = trainer.objective_at(0)
    assert isinstance(objective, BlockDiffusion)
    assert objective.parametrisation.logit_shift
    assert objective.parametrisation.clean_attention == "causal"


def test_bad_runs(files: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(files, tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "note.txt").write_text("mine")
    for resume in ("never", "auto"):
        with pytest.raises(ConfigError, match="is not empty"):
            Trainer(config, resume=resume)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="has no mask token"):
        Trainer(config_of(files, tmp_path / "other", model="parent"))
    with pytest.raises(ConfigError, match="clean_attention 'causal'"):
        Trainer(config_of(files, tmp_path / "leak", objective={"kind": "block_diffusion", "ar_weight": 0.5}))
    long = {"paths": [str(files["texts"])], "row_length": 1024}
    with pytest.raises(ConfigError, match="exceeds the model's context"):
        Trainer(config_of(files, tmp_path / "long", data=long))
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "leak").exists()


def test_truncated_moments_are_named(files: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(files, tmp_path / "run")
    moments = train(config) / "optimizer.safetensors"
    moments.write_bytes(moments.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors: damaged \(it has"):
        Trainer(config, resume="auto")


def test_each_epoch_draws_new_noise_for_a_row(files: dict[str, Path], tmp_path: Path) -> None:
    trainer = Trainer(config_of(files, tmp_path / "run", rows_per_batch=1))
    seen: dict[int, list[torch.Tensor]] = {}
    for _ in range(2 * len(trainer.rows)):
        (inputs,), _ = trainer._draw(trainer.objective_at(0))
        seen.setdefault(int(inputs.row_B[0]), []).append(inputs.masked_BN[0])
    assert len(seen) == len(trainer.rows)
    assert not any(torch.equal(first, second) for first, second in seen.values())
