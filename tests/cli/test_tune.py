"""`difflm tune`: what it prints, what it writes, and what generate then does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from difflm.cli.main import run
from tests.drafters import sure_drafters
from tests.evaluation.models import workshop

__all__ = ["sure_drafters", "workshop"]


def test_a_tuned_model_decodes_by_what_was_found(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "tune", str(workshop / "model"), "--max-new-tokens", "6", "--threshold", "0.001", "--block-size", "2",
        "--max-loss", "1",
    ]  # fmt: skip
    file = workshop / "model" / "generation_config.json"
    before = file.read_text() if file.exists() else None
    assert run([*words, "--task", str(workshop / "items.jsonl"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "native:block_length=4,threshold=1.0" in printed
    assert "score lost " in printed
    assert "written" not in printed
    assert (file.read_text() if file.exists() else None) == before
    assert run([*words, "--prompts", str(workshop / "items.jsonl")]) == 0
    chosen = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("block_size "))
    found = json.loads(file.read_text())
    assert chosen.startswith(f"block_size {found['block_size']}, threshold {found['threshold']}: ")


def test_a_tuned_drafter_decodes_by_what_was_found(
    sure_drafters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(sure_drafters / "drafter", tmp_path / "drafter"))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one"}\n')
    words = ["tune", str(folder), "--prompts", str(tmp_path / "prompts.jsonl"), "--max-new-tokens", "12"]
    assert run([*words, "--window", "4", "--window", "8"]) == 0
    printed = capsys.readouterr()
    assert "a row more and drafting cost, in forwards of one row: " in printed.err
    assert "tokens/cycle" in printed.out
    assert "verified:window=8,row_cost=" in printed.out
    found = json.loads((folder / "generation_config.json").read_text())
    line = next(each for each in printed.out.splitlines() if each.startswith("decoding "))
    assert line.startswith(f"decoding {found['decoding']}")
    assert run(["generate", str(folder), "-p", "one", "--max-new-tokens", "12"]) == 0
    assert f"decoding: {found['decoding']}, as generation_config.json says so" in capsys.readouterr().err
    assert run([*words, "--threshold", "0.9", "--dry-run"]) == 2
    assert "--threshold: 0.9 is for blocks, but the adapter on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--task, --prompts: give one of them"),
        (["--task", "a.jsonl", "--prompts", "b.jsonl"], "--task, --prompts: give one of them"),
        (["--task", "nothing"], "'nothing' is none"),
        (["--task", "a.jsonl"], "no folder"),
    ],
)
def test_what_is_wrong_is_said_before_the_model_is_read(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tune", str(tmp_path / "absent"), *words]) == 2
    assert message in capsys.readouterr().err
