"""`difflm sweep`: the table on stdout, the files, and a repeated sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from difflm.cli.main import run
from tests.drafters import sure_drafters
from tests.evaluation.models import workshop

__all__ = ["sure_drafters", "workshop"]


def test_a_sweep_writes_its_files_and_is_repeated_for_nothing(
    workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "sweep", str(workshop / "model"), "--task", str(workshop / "items.jsonl"), "--output", str(tmp_path / "out"),
        "--parent", str(workshop / "parent"), "--max-new-tokens", "6", "--threshold", "0.001", "--threshold", "1",
        "--block-size", "4", "--policy", "native", "--policy", "hf21:editing_threshold=0.5",
    ]  # fmt: skip
    assert run(words) == 0
    printed = capsys.readouterr()
    assert printed.err.count(": score ") == 5
    assert "native:block_length=4,threshold=1.0" in printed.out
    assert "0.500 (0.188-0.812)" in printed.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "points.jsonl", "sweep.csv", "sweep.json", "sweep.png",
    }  # fmt: skip
    again = run(words), capsys.readouterr()
    assert again == (0, printed)
    points = (tmp_path / "out" / "points.jsonl").read_text()
    assert run([*words, "--fresh"]) == 0
    assert (tmp_path / "out" / "points.jsonl").read_text() != points


def test_a_drafter_is_swept_left_to_right(
    sure_drafters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "items.jsonl").write_text(f'{{"prompt": "one", "answer": "{"a" * 12}"}}\n')
    words = ["--task", str(tmp_path / "items.jsonl"), "--max-new-tokens", "12"]
    drafter = ["sweep", str(sure_drafters / "drafter"), "--output", str(tmp_path / "out"), *words]
    assert run([*drafter, "--parent", str(sure_drafters / "parent")]) == 0
    lines = [
        line.split() for line in capsys.readouterr().out.splitlines() if ":window=" in line or "next_token" in line
    ]
    assert [line[-1] for line in lines] == ["-", "1.00", "1.00", "1.00", "-"], "share of drafts that was accepted"
    assert run([*drafter, "--block-size", "4"]) == 2
    assert "--block-size: 4 is for blocks, but the adapter on" in capsys.readouterr().err
    both = ["sweep", str(sure_drafters / "base"), "--output", str(tmp_path / "both"), *words]
    assert run([*both, "--policy", "verified:window=4", "--policy", "native", "--block-size", "4"]) == 0
    assert capsys.readouterr().err.count(": score ") == 2


def test_what_is_wrong_is_said_before_the_model_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", str(tmp_path / "absent"), "--output", str(tmp_path / "out"), "--task"]
    assert run([*words, "nothing"]) == 2
    assert "task: 'nothing' is none" in capsys.readouterr().err
    assert run([*words, "a.jsonl", "--policy", "hf22"]) == 2
    assert "policy: 'hf22' is unknown" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
