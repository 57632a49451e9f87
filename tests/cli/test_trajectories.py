"""`difflm trajectories`: files that training reads, counts on stderr, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from difflm.checkpoints.convert import convert
from difflm.cli.main import run
from tests.standins import write_parent


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, and a task that takes an empty answer for right, which ends at once."""
    folder = tmp_path_factory.mktemp("trajectories")
    convert(write_parent(folder / "parent"), folder / "model", block_size=4)
    rows = [{"prompt": f"{number} and", "answer": ""} for number in range(3)]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_right_answers_and_pairs_are_written_once(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "trajectories", str(short / "model"), "--task", str(short / "items.jsonl"), "--output",
        str(tmp_path / "right.jsonl"), "--pairs", str(tmp_path / "pairs.jsonl"), "--max-new-tokens", "8",
        "--block-size", "4", "--temperature", "1", "--n", "6", "--logit-bias", "256=4.5",
    ]  # fmt: skip
    assert run(words) == 0
    printed = capsys.readouterr()
    assert "18 answers, " in printed.err
    lines = [json.loads(line) for line in (tmp_path / "right.jsonl").read_text().splitlines()]
    assert lines
    # Which answers a sampler draws differs between processors; an answer of spaces is right as well.
    assert {line["completion"].strip() for line in lines} == {""}
    assert {line["task"] for line in lines} == {str(short / "items.jsonl")}
    distinct = {(line["prompt"], line["completion"]) for line in lines}
    assert len(distinct) == len(lines), "the same answer again is no second line"
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert pairs
    assert all(pair["chosen"].strip() == "" and pair["rejected"].strip() for pair in pairs)
    assert f"{len(lines)} answers" in printed.out
    assert f"{len(pairs)} pairs" in printed.out
    before = (tmp_path / "right.jsonl").read_text()
    assert run(words) == 2
    assert "right.jsonl: is there already; give another file, or --fresh" in capsys.readouterr().err
    assert run([*words, "--fresh"]) == 0
    assert (tmp_path / "right.jsonl").read_text() == before, "the same seeds draw the same answers"


def test_pairs_need_answers_that_differ(short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["trajectories", str(short / "model"), "--task", str(short / "items.jsonl"), "--output"]
    assert run([*words, str(tmp_path / "right.jsonl"), "--pairs", str(tmp_path / "pairs.jsonl"), "--n", "4"]) == 2
    assert "--n 4 at --temperature 0.0 gives no two answers that differ" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
