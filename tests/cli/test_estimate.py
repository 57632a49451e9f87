"""`difflm estimate`, and the estimate behind a dry run."""

from __future__ import annotations

import json

import pytest

from difflm.cli.main import run
from difflm.training.config_io import parse_yaml


def test_a_recipe_and_the_name_of_a_model_are_enough(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            [
                "estimate",
                "laptop",
                "--model",
                "smollm2-135m",
                "--no-measure",
                "--json",
                "accumulation=3",
                "data.row_length=256",
            ]
        )
        == 0
    )
    tree = json.loads(capsys.readouterr().out)
    assert tree["rows_per_step"] % 3 == 0
    assert tree["stages"][0]["block_size"] == 8
    assert (
        run(
            [
                "estimate",
                "laptop",
                "--model",
                "smollm2-135m",
                "--no-measure",
                "--fill",
                "0.5",
                "data.row_length=256",
            ]
        )
        == 0
    )
    assert "fill 50.0%" in capsys.readouterr().out
    assert run(["estimate", "laptop", "--model", "absent", "--no-measure"]) == 2
    assert "train.model: 'absent' is neither a folder nor one of" in capsys.readouterr().err


def test_a_dry_run_is_a_configuration_with_its_cost_as_comments(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "sft", "--model", "m", "--data", "d", "--output", "o", "--dry-run"]
    assert run(words) == 0
    out = capsys.readouterr().out
    assert parse_yaml(out, where="dry run")["model"] == "m"
    assert "# no estimate: train.model: 'm' is neither" in out
