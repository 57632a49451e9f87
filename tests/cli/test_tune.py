"""`difflm tune`: what it prints, what it writes, and what generate then does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from difflm.cli.main import run
from tests.evaluation.models import workshop

__all__ = ["workshop"]


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
