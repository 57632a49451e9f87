"""`difflm bench decode`: a table, one JSON document as the last line, progress apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from difflm.cli.bench import PROMPTS, read_prompts
from difflm.cli.main import run
from difflm.errors import DataError
from tests.standins import write_parent


def test_the_last_line_is_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parent = write_parent(tmp_path / "parent")
    assert run(["convert", str(parent), str(tmp_path / "model"), "--block-size", "4"]) == 0
    (tmp_path / "prompts.jsonl").write_text(
        '{"prompt": "one two", "completion": "x"}\n{"prompt": "three", "completion": "y"}\n'
    )
    capsys.readouterr()
    words = ["--parent", str(parent), "--prompts", str(tmp_path / "prompts.jsonl"), "--repeats", "2", "--threads", "1"]
    words += ["--dtype", "float32", "--trial-prompts", "1", "--max-new-tokens", "6", "--ignore-eos", "--items", "1"]
    assert run(["bench", "decode", str(tmp_path / "model"), *words]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out.splitlines()[-1])
    assert result["prompts"] == 1
    assert result["repeats"] == 2
    assert result["params"]["max_new_tokens"] == 6
    assert [row["setting"]["dtype"] for row in result["rows"]] == ["float32"] * 3
    assert "tokens/forward" in printed.out
    assert "repeat 2/2" in printed.err


def test_prompts_come_from_a_file_or_are_built_in(tmp_path: Path) -> None:
    assert read_prompts(None) == list(PROMPTS)
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert read_prompts(path) == ["a", "b"]
    with pytest.raises(DataError, match=r"absent.jsonl"):
        read_prompts(tmp_path / "absent.jsonl")
