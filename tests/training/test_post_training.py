"""Runs of the stages after pre-training: sums that do not depend on micro-batches, checkpoints that load, recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from difflm.checkpoints.loading import load_model
from difflm.plots import read_rows
from difflm.recipes import recipe
from difflm.runs import train
from difflm.training.trainer import Trainer
from tests.training.runs import config_of
from tests.training.test_trainer import gradients

SFT: dict[str, Any] = {"kind": "block_diffusion", "noise": "bernoulli", "weighting": "uniform", "complementary": True}
CAP = SFT | {"confidence": {"weight": 2.0, "temperature": 0.5}}
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
@pytest.mark.parametrize("objective", [SFT | {"weighting": "elbo", "views": 2}, CAP], ids=["sft", "cap"])
def test_accumulation_is_exact(
    taught: dict[str, Path], answers: Path, tmp_path: Path, objective: dict[str, Any], lora: dict[str, Any] | None
) -> None:
    results = []
    for index, (rows, accumulation) in enumerate([(4, 1), (1, 4)]):
        config = config_of(
            taught,
            tmp_path / str(index),
            data=data_of(answers),
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
        assert metrics["loss_by_term"]["confidence"] > 0
    assert any(float(each.abs().sum()) > 0 for each in large.values())
    for name, gradient in large.items():
        assert torch.allclose(gradient, small[name], atol=1e-6, rtol=1e-4), name


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["sft", "cap"])
def test_a_recipe_is_a_run_whose_checkpoint_loads(
    files: dict[str, Path], answers: Path, tmp_path: Path, name: str, lora: bool
) -> None:
    changes = ["data.row_length=64", "curriculum=[{block_size: 8, tokens: 900}]", "dtype=float32", "accumulation=2",
               "data.validation_fraction=0.2", "validation.rows=2", "log_every=1", "optimizer.learning_rate=1e-3",
               "recipe=" + name]  # fmt: skip
    changes += ["lora.rank=2"] if lora else []
    config = recipe(name, model=files["paper"], output=tmp_path / "run", data=answers, overrides=changes)
    final = train(config)
    loaded = load_model(final)
    assert loaded.config.block_size == 8
    card = (final / "README.md").read_text()
    assert f"| recipe | `{name}` |" in card
    assert "validation perplexity, block 8" in card
    assert answers.name in card
    rows = [row for row in read_rows(config.output / "metrics.jsonl") if row["kind"] == "train"]
    assert ("confidence" in rows[0]["loss_by_term"]) == (name == "cap")
    assert all(row["loss"] > 0 for row in rows)
