"""`difflm bench decode`: a table, one JSON document as the last line, progress apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from difflm.bench.systems import PARENT_ENGINE, PARENT_TRANSFORMERS, VERIFIED
from difflm.cli.bench import PROMPTS, read_prompts
from difflm.cli.main import run
from difflm.errors import DataError
from tests.drafters import sure_drafters
from tests.standins import write_parent

__all__ = ["sure_drafters"]


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


def test_a_drafter_is_held_against_its_parent(sure_drafters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--parent", str(sure_drafters / "parent"), "--items", "1", "--repeats", "1", "--threads", "1"]
    words += ["--dtype", "float32", "--max-new-tokens", "12"]
    assert run(["bench", "decode", str(sure_drafters / "drafter"), *words]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out.splitlines()[-1])
    assert [row["setting"]["system"] for row in result["rows"]] == [VERIFIED, PARENT_ENGINE, PARENT_TRANSFORMERS]
    assert "verified, float32: 1 of 1 answers equal to next_token's; " in printed.out
    assert run(["bench", "decode", str(sure_drafters / "drafter"), *words, "--policy", "verified:window=4"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(result["rows"][0]["drafts"]["accepted_at"]) == 3
    assert result["params"]["policy"]["window"] == 4
    assert run(["bench", "decode", str(sure_drafters / "drafter"), *words, "--decoding", "block"]) == 2
    assert "only drafts" in capsys.readouterr().err


def test_prompts_come_from_a_file_or_are_built_in(tmp_path: Path) -> None:
    assert read_prompts(None) == list(PROMPTS)
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert read_prompts(path) == ["a", "b"]
    with pytest.raises(DataError, match=r"absent.jsonl"):
        read_prompts(tmp_path / "absent.jsonl")
