"""Runs of the stages after pre-training: sums that do not depend on micro-batches, checkpoints that load, recipes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from difflm.checkpoints.loading import load_model
from difflm.errors import ConfigError, DataError
from difflm.plots import read_rows
from difflm.recipes import recipe
from difflm.runs import train
from difflm.training.trainer import Trainer
from tests.training.runs import Notes, config_of
from tests.training.test_trainer import gradients

SFT: dict[str, Any] = {"kind": "block_diffusion", "noise": "bernoulli", "weighting": "uniform", "complementary": True}
CAP = SFT | {"confidence": {"weight": 2.0, "temperature": 0.5}}
DPO: dict[str, Any] = {"kind": "dpo", "samples": 2}
LORA = {"rank": 2, "alpha": 4.0}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return prompts with completions of several lengths."""
    path = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "runs"]
    rows = [
        {"prompt": " ".join(words[: 2 + n % 3]) + " ", "completion": " ".join(words[n % 5 : n % 5 + 2 + n % 5])}
        for n in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return preference pairs of several lengths."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "and", "runs"]
    rows = [
        {
            "prompt": " ".join(words[: 1 + n % 3]) + " ",
            "chosen": " ".join(words[n % 5 : n % 5 + 2 + n % 3]),
            "rejected": " ".join(words[5 + n % 3 : 6 + n % 3 + n % 2]),
        }
        for n in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def taught(files: dict[str, Path], answers: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return files whose model predicts some of the answers' tokens right."""
    changes: dict[str, Any] = {
        "data": data_of(answers) | {"validation_fraction": 0.0},
        "curriculum": [{"block_size": 4, "tokens": 6000}],
        "optimizer": {"learning_rate": 1e-2},
    }
    return files | {"paper": train(config_of(files, tmp_path_factory.mktemp("taught") / "run", **changes))}


def data_of(path: Path) -> dict[str, Any]:
    return {"paths": [str(path)], "row_length": 64, "validation_fraction": 0.2}


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("objective", [SFT | {"weighting": "elbo", "views": 2}, CAP, DPO], ids=["sft", "cap", "dpo"])
def test_accumulation_is_exact(
    taught: dict[str, Path],
    answers: Path,
    pairs: Path,
    tmp_path: Path,
    objective: dict[str, Any],
    lora: dict[str, Any] | None,
) -> None:
    results = []
    for index, (rows, accumulation) in enumerate([(4, 1), (1, 4)]):
        config = config_of(
            taught,
            tmp_path / str(index),
            data=data_of(pairs if objective["kind"] == "dpo" else answers),
            objective=objective,
            lora=lora,
            rows_per_batch=rows,
            accumulation=accumulation,
        )
        results.append(gradients(Trainer(config)))
    (large, metrics), (small, other) = results
    assert other["loss_by_term"] == pytest.approx(metrics["loss_by_term"], rel=1e-5)
    assert other["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    if "confidence" in objective:
        assert 0 < metrics["loss_by_term"]["confidence"] < math.log(200), "a mean of entropies"
    if objective["kind"] == "dpo":
        assert metrics["loss"] == pytest.approx(math.log(2), rel=1e-6)
        assert other["pairs"] == metrics["pairs"] >= 4
        assert other["logps"] == pytest.approx(metrics["logps"], rel=1e-5)
    assert any(float(each.abs().sum()) > 0 for each in large.values())
    for name, gradient in large.items():
        assert torch.allclose(gradient, small[name], atol=1e-6, rtol=1e-4), name


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["sft", "cap", "dpo"])
def test_a_recipe_is_a_run_whose_checkpoint_loads(
    files: dict[str, Path], answers: Path, pairs: Path, tmp_path: Path, name: str, lora: bool
) -> None:
    data = pairs if name == "dpo" else answers
    changes = ["data.row_length=64", "curriculum=[{block_size: 8, tokens: 900}]", "dtype=float32", "accumulation=2",
               "data.validation_fraction=0.2", "validation.rows=2", "log_every=1", "optimizer.learning_rate=1e-3",
               "recipe=" + name]  # fmt: skip
    changes += ["lora.rank=2"] if lora else []
    config = recipe(name, model=files["paper"], output=tmp_path / "run", data=data, overrides=changes)
    final = train(config)
    loaded = load_model(final)
    assert loaded.config.block_size == 8
    card = (final / "README.md").read_text()
    assert f"| recipe | `{name}` |" in card
    assert "validation perplexity, block 8" in card
    assert data.name in card
    rows = [row for row in read_rows(config.output / "metrics.jsonl") if row["kind"] == "train"]
    assert ("confidence" in rows[0]["loss_by_term"]) == (name == "cap")
    assert all(row["loss"] > 0 for row in rows)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_preference_run_raises_its_margin(
    taught: dict[str, Path], pairs: Path, tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    notes = Notes()
    config = config_of(
        taught,
        tmp_path / "run",
        data=data_of(pairs),
        objective=DPO | {"beta": 0.5},
        lora=lora,
        curriculum=[{"block_size": 4, "tokens": 4000}],
        optimizer={"learning_rate": 3e-3},
        lr_schedule={"kind": "constant"},
        rows_per_batch=4,
    )
    trainer = Trainer(config, observer=notes)
    reference = trainer.preferences.reference
    assert reference is not None
    assert (reference.model is None) == (lora is not None), "with LoRA the reference is the base: no second copy"
    trainer.train()
    rows = read_rows(config.output / "metrics.jsonl")
    steps = [row for row in rows if row["kind"] == "train"]
    first, last = steps[0], steps[-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert first["rewards"] == {"chosen": 0.0, "rejected": 0.0, "accuracies": 0.0, "margins": 0.0}
    assert last["rewards"]["margins"] > 0.1
    assert last["rewards"]["accuracies"] > 0.5
    assert last["rewards"]["margins"] == pytest.approx(last["rewards"]["chosen"] - last["rewards"]["rejected"])
    assert last["margin_variance"] > 0
    assert all(value < 0 for value in last["logps"].values())
    start, end = [row for row in rows if row["kind"] == "validation"]
    assert start["preference_loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert end["preference_loss"] < start["preference_loss"]
    assert any(
        line.startswith("preferences: loss 0.6931, accuracy 0.0%, margin 0.0000, variance 0 (2") for line in notes.lines
    )


def test_pairs_and_answers_belong_to_their_objectives(
    files: dict[str, Path], answers: Path, pairs: Path, tmp_path: Path
) -> None:
    for index, (path, objective) in enumerate([(answers, DPO), (pairs, SFT)]):
        with pytest.raises(DataError, match=r"jsonl:1: .* but objective (dpo|block_diffusion) learns"):
            Trainer(config_of(files, tmp_path / str(index), data=data_of(path), objective=objective))
    with pytest.raises(ConfigError, match=r"embedding_noise.sigma: 0.1 has no meaning for objective dpo"):
        config_of(files, tmp_path / "noise", objective=DPO, embedding_noise={"sigma": 0.1})


def test_a_preference_run_resumes_to_the_same_numbers(taught: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    """The reference is the model that the run began with, not the checkpoint that it goes on from."""
    changes: dict[str, Any] = {
        "data": data_of(pairs),
        "objective": DPO,
        "curriculum": [{"block_size": 4, "tokens": 2400}],
        "checkpoint": {"every_tokens": 800},
        "rows_per_batch": 4,
    }
    whole = config_of(taught, tmp_path / "whole", **changes)
    train(whole)
    part = config_of(taught, tmp_path / "part", **changes)
    trainer = Trainer(part)
    trainer._validate()
    while trainer.state.tokens < 1200:
        before = trainer.state.tokens
        trainer._record(trainer.train_step())
        trainer._after_step(before)
    trainer.close()
    train(part, resume="auto")
    one, other = (
        [(row["loss"], row["rewards"]) for row in read_rows(run.output / "metrics.jsonl") if row["kind"] == "train"]
        for run in (whole, part)
    )
    assert one == other
