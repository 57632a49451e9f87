"""`difflm prepare`, and training on what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from difflm.checkpoints.convert import convert
from difflm.cli.main import run
from tests.standins import write_parent, write_texts


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli-prepare")
    convert(write_parent(folder / "parent"), folder / "model", block_size=4)
    return folder / "model"


def test_it_prints_the_format_the_table_and_trains(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_texts(tmp_path / "texts.jsonl")
    output = tmp_path / "prepared"
    arguments = ["prepare", str(path), "--model", str(model), "--output", str(output), "--validation-fraction", "0.1"]
    assert run([*arguments, "--row-length", "64", "--show", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("legend: ")
    assert f"format: {path}: jsonl (the first line is an object)\n" in printed
    assert "near duplicates (>= 0.8)" in printed
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        json.dumps(
            {
                "data": {"paths": [str(output)], "row_length": 64},
                "curriculum": [{"block_size": 4, "tokens": 300}],
                "validation": {"rows": 2, "block_sizes": [4]},
                "threads": 1,
            }
        )
    )
    assert run(["train", str(recipe), "--model", str(model), "--output", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr()
    assert f"{output}: prepared from {path} (text)" in printed.out + printed.err


def test_show_alone_writes_nothing(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "ab", "completion": "cd"}\n')
    arguments = ["prepare", str(path), "--model", str(model), "--show", "1", "--row-length", "16", "--mask-rate", "1"]
    assert run([*arguments, "--block-size", "8"]) == 0
    printed = capsys.readouterr().out
    assert "  {a|b}|[c|d]|[<EOS>]|[<fill>|<fill>|<fill>]|\n" in printed
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pairs.jsonl"]


def test_weights_belong_to_paths_in_order(model: Path, tmp_path: Path) -> None:
    paths = [write_texts(tmp_path / f"{name}.jsonl", documents=4) for name in "ab"]
    arguments = ["prepare", *map(str, paths), "--model", str(model), "--output", str(tmp_path / "p")]
    assert run([*arguments, "--weight", "0.25", "--weight", "0.75"]) == 0
    manifest = json.loads((tmp_path / "p" / "manifest.json").read_text())
    assert [(source["path"], source["weight"]) for source in manifest["sources"]] == [
        (str(paths[0]), 0.25),
        (str(paths[1]), 0.75),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--output: missing; name the folder to write, or give --show N"),
        (["--output", "p", "--weight", "1", "--weight", "2"], "weights: 2 weights for 1 paths"),
        (["--output", "p", "--format", "json"], "a.jsonl:1: not a JSON array"),
        (["--output", "p", "--model", "absent"], "absent: no such file or folder"),
        (["--show", "1", "--mask-rate", "2"], "mask_rate: 2.0 is out of range"),
    ],
)
def test_mistakes_are_one_line(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "a.jsonl", documents=3)
    assert run(["prepare", "a.jsonl", "--model", str(model), *options]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert message in printed
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl"]
