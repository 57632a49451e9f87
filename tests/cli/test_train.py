"""`difflm train`: recipes by name and file, overrides, a recorded configuration that repeats its run, resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from difflm.cli.main import run
from difflm.training.config_io import load_config, parse_yaml
from tests.standins import write_parent, write_texts

SHORT = [
    "data.row_length=32",
    "curriculum=[{block_size: 1, tokens: 100}, {block_size: 8, tokens: 300}]",
    "embedding_noise.stages=1",
    "checkpoint.every_tokens=100",
    "validation.rows=2",
    "validation.every_tokens=0",
]
VOLATILE = ("seconds", "tokens_per_second", "memory_bytes")


def figures(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in VOLATILE} for row in rows]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    write_parent(folder / "parent")
    write_texts(folder / "text.jsonl")
    assert run(["convert", str(folder / "parent"), str(folder / "converted"), "--block-size", "8"]) == 0
    words = [
        "--model",
        str(folder / "converted"),
        "--data",
        str(folder / "text.jsonl"),
        "--output",
        str(folder / "run"),
    ]
    assert run(["train", "laptop-wsd", *SHORT, *words]) == 0
    return folder


def test_a_run_folder_holds_what_it_should(workshop: Path) -> None:
    names = {path.name for path in (workshop / "run").iterdir()}
    assert names == {"config.yaml", "metrics.jsonl", "training.png", "checkpoints"}
    rows = figures(workshop / "run")
    sizes = [row["block_size"] for row in rows if row["kind"] == "train"]
    assert sizes == sorted(sizes)
    assert set(sizes) == {1, 8}
    assert set(rows[0]["perplexity"]) == {"1", "4", "8", "32"}


def test_the_recorded_configuration_is_the_recipe_with_the_overrides(workshop: Path) -> None:
    config = load_config(workshop / "run" / "config.yaml")
    assert config.model == workshop / "converted"
    assert config.data.row_length == 32
    assert [stage.block_size for stage in config.curriculum] == [1, 8]
    assert config.optimizer.mask_row_lr_scale == 15.0, "from the recipe"


def test_the_recorded_configuration_repeats_the_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = workshop / "again"
    assert run(["train", str(workshop / "run" / "config.yaml"), "--output", str(again)]) == 0
    assert figures(again) == figures(workshop / "run")
    checkpoint = Path(capsys.readouterr().out.splitlines()[-1])
    assert checkpoint.parent == again / "checkpoints"
    first = workshop / "run" / "checkpoints" / checkpoint.name
    assert (checkpoint / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


def test_a_finished_run_stays_as_it_is_and_never_refuses_it(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = figures(workshop / "run")
    assert run(["train", str(workshop / "run" / "config.yaml")]) == 0
    assert figures(workshop / "run") == before
    assert run(["train", str(workshop / "run" / "config.yaml"), "--resume", "never"]) == 2
    assert f"{workshop / 'run'} is not empty" in capsys.readouterr().err


def test_dry_run_prints_the_whole_configuration_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        run(["train", "sft", "--model", "m", "--data", "a", "--data", "b", "--output", "o", "--dry-run", "seed=7"]) == 0
    )
    tree = parse_yaml(capsys.readouterr().out, where="dry run")
    assert (tree["model"], tree["data"]["paths"], tree["output"], tree["seed"]) == ("m", ["a", "b"], "o", 7)
    assert tree["objective"]["complementary"] is True
    assert not list(tmp_path.iterdir())


def test_overrides_with_dashes_functions_and_scaled_budgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab_recipes.py").write_text(
        "from difflm.recipes import smollm2\ndef mine(model, output):\n"
        "    return smollm2(model=model, output=output, data='mine.jsonl')\n"
    )
    words = ["--seed=3", "lab_recipes:mine", "--model", "m", "--output", "o", "--tokens", "6000", "--dry-run"]
    assert run(["train", *words, "--optimizer.learning-rate", "3e-5", "--dtype=float32", "data.row_length=512"]) == 0
    tree = parse_yaml(capsys.readouterr().out, where="dry run")
    assert (tree["recipe"], tree["data"]["paths"], tree["data"]["row_length"]) == ("smollm2", ["mine.jsonl"], 512)
    assert (tree["seed"], tree["optimizer"]["learning_rate"], tree["dtype"]) == (3, 3e-5, "float32")
    assert sum(stage["tokens"] for stage in tree["curriculum"]) == 6000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sft", "--verbose"], "difflm: --verbose: no such option, and no value for a field"),
        (["sft", "--modle", "m"], "difflm: train.modle: unknown field; did you mean 'model'?"),
        (["--seed=3"], "difflm: Missing argument 'RECIPE'."),
        (["no_such_module:f"], "difflm: recipe: no_such_module:f: no module 'no_such_module'"),
        (["sft", "--tokens", "0"], "difflm: Invalid value for '--tokens'"),
    ],
)
def test_what_cannot_be_resolved_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", *words]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(message)
    assert printed.count("\n") == 1
