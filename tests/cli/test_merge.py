"""`difflm merge`: named checkpoints are averaged, a run's best ones are chosen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from difflm.cli.main import run
from tests.cli.test_train import SHORT
from tests.standins import write_parent, write_texts


def test_named_checkpoints_are_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = write_parent(tmp_path / "one", seed=1), write_parent(tmp_path / "two", seed=2)
    assert run(["merge", str(one), str(two), "--output", str(tmp_path / "mean")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'mean'}: mean of 2 checkpoints\n"
    name = "model.layers.0.mlp.up_proj.weight"
    left, right, mean = (load_file(folder / "model.safetensors")[name] for folder in (one, two, tmp_path / "mean"))
    torch.testing.assert_close(mean, (left + right) / 2)


def test_the_best_of_a_run_are_chosen_and_the_mean_is_validated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_parent(tmp_path / "parent")
    assert run(["convert", str(tmp_path / "parent"), str(tmp_path / "converted"), "--block-size", "8"]) == 0
    words = ["--model", str(tmp_path / "converted"), "--output", str(tmp_path / "run")]
    words += ["--data", str(write_texts(tmp_path / "text.jsonl"))]
    assert run(["train", "laptop-wsd", *SHORT, *words]) == 0
    capsys.readouterr()
    assert run(["merge", str(tmp_path / "run"), "--output", str(tmp_path / "mean"), "--best", "2"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert len(lines) == 3
    best, _, mean = (float(line.partition("block 8 ")[2].split()[0]) for line in lines)
    assert ("worse than its best member" in printed.err) == (mean > best)
    assert all("perplexity at block 8" in line for line in lines)
    assert lines[-1].startswith(f"{tmp_path / 'mean'}: ")
    assert lines[-1].endswith("(mean of 2)")
