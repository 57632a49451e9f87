"""What is read from a run folder, whole or damaged."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from difflm.errors import CheckpointError, ConfigError, DataError
from difflm.reporting.facts import number, read_run
from difflm.training.state import STATE
from tests.reporting.runs import state_at, train_row, validation_row, write_checkpoint, write_run


def test_rows_are_sorted_by_kind_and_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    skipped = {"kind": "skipped", "step": 2, "num_tokens": 200, "skipped": 1, "budget": 10, "seconds": 4.0}
    sampled = {"kind": "samples", "step": 0, "num_tokens": 0, "tokens_per_forward": 2.0}
    rows = [validation_row(0), sampled, train_row(1), skipped]
    run = write_run(tmp_path / "run", rows)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    facts = read_run(run)
    assert (facts.validation, facts.sampled, facts.train, facts.skipped) == (rows[:1], rows[1:2], rows[2:3], rows[3:])
    assert facts.last == skipped
    assert facts.samples == []


def test_a_run_before_its_first_step_stands_at_zero(tmp_path: Path) -> None:
    facts = read_run(write_run(tmp_path / "run"))
    assert facts.last["step"] == facts.last["num_tokens"] == 0
    assert facts.checkpoints == []


def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config.yaml, so not a run folder; give the output folder"):
        read_run(tmp_path)
    with pytest.raises(CheckpointError, match="so not a run folder"):
        read_run(tmp_path / "absent")
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text("model: [")
    with pytest.raises(ConfigError, match=r"config.yaml: not valid YAML"):
        read_run(run)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7", "metrics.jsonl:2: kind is None, expected a string"),
        ('{"kind": "train", "num_tokens": 3}', "metrics.jsonl:2: step is None, expected a number"),
        ('{"kind": "train", "step": 1, "num_tokens": "3"}', "metrics.jsonl:2: num_tokens is '3', expected a number"),
    ],
)
def test_rows_that_no_run_writes_are_refused(tmp_path: Path, line: str, message: str) -> None:
    run = write_run(tmp_path / "run", [train_row(1)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n{json.dumps(train_row(2))}\n")
    with pytest.raises(DataError, match=message):
        read_run(run)


def test_the_state_of_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [train_row(8)])
    assert read_run(run).status[0] == "stopped"
    holder = {"pid": os.getpid(), "host": platform.node()}
    (run / ".lock").write_text(json.dumps(holder))
    assert read_run(run).status == ("running", f"process {os.getpid()}")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (run / ".lock").write_text(json.dumps({**holder, "pid": ended.pid}))
    assert read_run(run).status[0] == "stopped"
    assert f"process {ended.pid} was killed" in read_run(run).status[1]
    (run / ".lock").write_text(json.dumps({**holder, "host": "elsewhere"}))
    assert read_run(run).status[0] == "unfinished"
    (run / ".lock").write_text("{")
    assert read_run(run).status[0] == "unfinished"
    write_checkpoint(run, state_at(7, tokens=799))
    assert read_run(run).status[0] == "unfinished"
    write_checkpoint(run, state_at(8))
    assert read_run(run).status == ("finished", "")


def test_checkpoints_say_what_they_are_good_for(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [train_row(8)])
    for step, perplexity, moments in ((4, 1.0, False), (5, 9.0, False), (6, 7.0, False), (7, 8.0, True)):
        write_checkpoint(run, state_at(step, validation={"4": perplexity, "8": perplexity}), moments=moments)
    write_checkpoint(run, state_at(8))
    found = read_run(run).checkpoints
    assert [each.rank for each in found] == [None, 3, 1, 2, None], "final block size only, lowest perplexity first"
    assert [each.resumable for each in found] == [False, False, False, True, True]
    assert [each.perplexity for each in found] == [1.0, 9.0, 7.0, 8.0, None]
    on_disk = sum(file.stat().st_size for file in (run / "checkpoints" / found[3].name).iterdir())
    assert found[3].size == on_disk
    assert {each.damage for each in found} == {""}


def test_damaged_checkpoints_are_named_and_count_for_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [train_row(8)])
    short = write_checkpoint(run, state_at(6, tokens=800))
    (short / "model.safetensors").write_bytes(bytes(4999))
    (write_checkpoint(run, state_at(7)) / "manifest.json").unlink()
    broken = write_checkpoint(run, state_at(8))
    (broken / STATE).write_text("{")
    (run / "checkpoints" / "step-00000009").mkdir()
    facts = read_run(run)
    damage = [each.damage for each in facts.checkpoints]
    assert damage[0] == "model.safetensors is missing or has another size than was written"
    assert damage[1].startswith("manifest.json: missing")
    assert damage[2].startswith(f"{STATE}: cannot be read")
    assert damage[3] == f"{STATE} is missing"
    assert not any(each.resumable or each.rank for each in facts.checkpoints)
    assert facts.status[0] == "stopped", "a damaged last checkpoint does not finish a run"


def test_peak_memory_that_falls_is_a_restart(tmp_path: Path) -> None:
    peaks = [5, 6, 6, None, 4, 4, 9, 8]
    rows = [train_row(step, memory_bytes=peak) for step, peak in enumerate(peaks, start=1)]
    assert read_run(write_run(tmp_path / "run", rows)).restarts == 2


def test_a_number_is_finite_or_none() -> None:
    row = {"a": {"b": 2}, "c": True, "d": "3", "e": float("nan"), "f": None}
    assert number(row, "a", "b") == 2.0
    assert [number(row, name) for name in "cdefg"] == [None] * 5
    assert number(row, "c", "b") is None
