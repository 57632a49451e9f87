"""The examples run as their headers say, and do what they claim."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from difflm.checkpoints.convert import convert
from difflm.diffusion.noise import RowNoise
from difflm.diffusion.objectives import BlockDiffusion, Objective
from difflm.plots import read_rows
from difflm.training.config_io import as_config
from difflm.training.trainer import Trainer
from difflm.types import Batch, Parametrisation, TokenScores
from tests.standins import write_parent, write_texts

ROOT = Path(__file__).parents[1]


def run(name: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkpoint, the same converted (with a shift), and texts."""
    folder = tmp_path_factory.mktemp("examples")
    write_parent(folder / "parent")
    write_texts(folder / "texts.jsonl")
    convert(folder / "parent", folder / "converted", block_size=8, logit_shift=True)
    return folder


def test_every_example_has_a_test() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == {"convert_tiny.py", "custom_objective.py"}


def test_convert_tiny(start: Path, tmp_path: Path) -> None:
    printed = run("convert_tiny.py", start / "parent", start / "texts.jsonl", tmp_path, "1000")
    assert " tokens in " in printed
    parametrisation = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert parametrisation["logit_shift"] is True


def test_custom_objective(start: Path, tmp_path: Path) -> None:
    printed = run("custom_objective.py", start / "converted", start / "texts.jsonl", tmp_path / "run")
    assert (Path(printed.strip()) / "model.safetensors").is_file()
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert {row["block_size"] for row in rows} == {4, 8}


def test_a_wrapper_receives_the_stage_as_it_is_configured(start: Path, tmp_path: Path) -> None:
    seen: list[Objective] = []

    def keep(base: Objective) -> Objective:
        seen.append(base)
        return base

    tree = {
        "model": str(start / "converted"),
        "output": str(tmp_path / "run"),
        "data": {"paths": [str(start / "texts.jsonl")], "row_length": 64, "validation_fraction": 0},
        "objective": {"kind": "block_diffusion", "weighting": "uniform"},
        "curriculum": [{"block_size": 4, "tokens": 1}, {"block_size": "row", "tokens": 1}],
    }
    trainer = Trainer(as_config(tree), objective=keep)
    assert [trainer.objective_at(stage) for stage in (0, 1)] == seen
    shift = Parametrisation(logit_shift=True)
    made = (
        BlockDiffusion(block_size=size, weighting="uniform", shared=True, parametrisation=shift) for size in (4, 64)
    )
    assert seen == list(made)


def test_the_custom_loss_is_the_focal_one() -> None:
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from custom_objective import Focal  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(ROOT / "examples"))
    token_BL = torch.arange(8)[None]
    batch = Batch(
        token_BL=token_BL,
        document_BL=torch.zeros_like(token_BL),
        position_BL=token_BL,
        trainable_BL=torch.ones_like(token_BL, dtype=torch.bool),
        row_B=torch.zeros(1, dtype=torch.int64),
        epoch_B=torch.zeros(1, dtype=torch.int64),
    )
    base = BlockDiffusion(block_size=4)
    inputs = Focal(base=base).prepare(batch, mask_id=99, noise=RowNoise(0))
    (term,) = inputs.terms
    nll_M = torch.linspace(0.1, 3.0, len(term.target_M))
    scores = (TokenScores(nll_M=nll_M, entropy_M=nll_M, correct_M=nll_M > 1),)
    expected = sum(
        float(weight) * (1 - 2.718281828 ** -float(nll)) ** 2 * float(nll)
        for weight, nll in zip(term.weight_M, nll_M, strict=True)
    )
    assert float(Focal(base=base, gamma=2.0).loss(scores, inputs)[0]) == pytest.approx(expected, rel=1e-5)
    assert torch.equal(Focal(base=base, gamma=0.0).loss(scores, inputs)[0], base.loss(scores, inputs)[0])
