"""Signals and the command line: 75 when everything was saved, 130 or 143 when a second signal would not wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from difflm import display
from difflm.checkpoints.convert import convert
from difflm.cli.main import run
from difflm.training.metrics import Metrics
from difflm.training.state import checkpoint_folders, newest_verified, read_state
from tests.standins import write_parent, write_texts
from tests.training.runs import Notes

INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the arguments of a run, without its output folder."""
    folder = tmp_path_factory.mktemp("interruption")
    convert(write_parent(folder / "parent"), folder / "model", block_size=8)
    write_texts(folder / "texts.jsonl")
    (folder / "run.yaml").write_text(
        "data: {paths: [texts.jsonl], row_length: 64}\ncurriculum: [{block_size: 8, tokens: 1000}]\nthreads: 1\n"
    )
    return ["train", str(folder / "run.yaml"), "--model", str(folder / "model"), "--data", str(folder / "texts.jsonl")]


class Signals(Notes):
    """Sends signals to this process after the second step."""

    def __init__(self, numbers: Sequence[signal.Signals]) -> None:
        super().__init__()
        self.numbers = numbers

    def update(self, metrics: Metrics) -> None:
        if metrics["kind"] == "train" and metrics["step"] == 2:
            for number in self.numbers:
                os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [INT, TERM])
def test_one_signal_saves_and_exits_with_75_and_the_run_goes_on(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    monkeypatch.setattr(display, "training_observer", lambda: Signals([number]))
    output = tmp_path / "run"
    assert run([*words, "--output", str(output)]) == 75
    (folder,) = checkpoint_folders(output)
    said = capsys.readouterr().err
    assert said == (
        f"difflm: {number.name}: stopped after step 2, everything is saved in {folder}; resume with --resume auto\n"
    )
    assert newest_verified(output) == (folder, [])
    monkeypatch.undo()
    assert run([*words, "--output", str(output)]) == 0
    assert read_state(checkpoint_folders(output)[-1]).tokens >= 1000
    capsys.readouterr()
    assert run([*words, "--output", str(output)]) == 0
    assert "the run is finished (1000 tokens); nothing is left to do" in "".join(capsys.readouterr())


@pytest.mark.parametrize(("numbers", "code"), [([INT, INT], 130), ([TERM, INT], 130), ([TERM, TERM], 143)])
def test_a_second_signal_does_not_wait(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: list[signal.Signals], code: int
) -> None:
    monkeypatch.setattr(display, "training_observer", lambda: Signals(numbers))
    try:
        found: object = run([*words, "--output", str(tmp_path / "run")])
    except SystemExit as error:
        found = error.code
    assert found == code
    assert checkpoint_folders(tmp_path / "run") == []
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_process_that_is_told_to_end(words: list[str], tmp_path: Path) -> None:
    """As a scheduler does it: SIGTERM from outside, at any moment of the run."""
    output = tmp_path / "run"
    command = [sys.executable, "-m", "difflm", *words, "--output", str(output), "curriculum.0.tokens=50000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    log = output / "metrics.jsonl"
    try:
        while process.poll() is None and not (log.exists() and '"train"' in log.read_text()):
            time.sleep(0.05)
        process.send_signal(TERM)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 75, said
    assert "SIGTERM: stopped after step" in said
    found, skipped = newest_verified(output)
    assert found is not None
    assert skipped == []
    assert not (output / ".lock").exists()
