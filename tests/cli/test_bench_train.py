"""`difflm bench train`: a table, one JSON document as the last line, progress apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from difflm.cli.main import run
from tests.standins import write_parent


def test_the_last_line_is_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parent = write_parent(tmp_path / "parent")
    words = ["--length", "24", "--backend", "portable", "--backend", "dense", "--repeats", "1"]
    words += ["--layers", "1", "--threads", "1", "--documents", "2", "--block-size", "4"]
    assert run(["bench", "train", str(parent), *words]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out.splitlines()[-1])
    assert result["benchmark"] == "train"
    assert result["settings"]["layers"] == 1
    assert [(row["attention"], row["length"]) for row in result["rows"]] == [
        ("portable", 24),
        ("dense", 24),
    ]
    assert all(row["peak_mib"] > 50 for row in result["rows"])
    assert "peak MiB" in printed.out
    assert "L 24, dense:" in printed.err


def test_without_memory_the_column_is_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parent = write_parent(tmp_path / "parent")
    words = ["--length", "16", "--backend", "split", "--repeats", "1", "--threads", "1", "--no-memory"]
    assert run(["bench", "train", str(parent), *words]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[-1])["rows"][0]["peak_mib"] is None
    assert printed[-2].split()[-1] == "-"


def test_a_bad_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "train", "no-such-model"]) == 2
    assert capsys.readouterr().err.startswith("difflm: model: 'no-such-model' is neither a path")
