"""Boards beside metrics.jsonl: the same rows, each once however often a run stops, and never in the run's way."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from difflm.errors import CheckpointError, ConfigError, Interrupted
from difflm.plots import read_rows
from difflm.training.config import TrainConfig
from difflm.training.metrics import Metrics, MetricsLog
from difflm.training.tracking import RECORD, Boards, flat_values, shown
from difflm.training.trainer import Trainer
from tests.training.runs import Notes, config_of

STOPPED = {
    "checkpoint": {"every_tokens": 200},
    "curriculum": [{"block_size": 4, "tokens": 800}],
    "validation": {"rows": 1, "block_sizes": [4], "autoregressive": False},
}


class Board:
    """Stands in for wandb and trackio: keeps what arrives, by the entry's id or name, and can be made to fail."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.entries: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self.ended: list[int | None] = []
        self.fails_at: int | None = None
        self.error: Exception = OSError("network is unreachable")
        self.fails_to_start = self.fails_to_close = False

    def init(self, **given: Any) -> SimpleNamespace:
        if self.fails_to_start:
            raise self.error
        print("* a greeting")
        self.calls.append(given)
        rows = self.entries.setdefault(given.get("id") or given["name"], [])

        def log(values: Mapping[str, float], step: int) -> None:
            if self.fails_at is not None and step >= self.fails_at:
                raise self.error
            assert not rows or step >= rows[-1][0], "wandb drops steps that go back"
            rows.append((step, dict(values)))

        def finish(exit_code: int | None = None) -> None:
            if self.fails_to_close:
                raise self.error
            self.ended.append(exit_code)

        return SimpleNamespace(log=log, finish=finish)

    def only(self) -> list[tuple[int, dict[str, float]]]:
        (rows,) = self.entries.values()
        return rows


@pytest.fixture(params=["wandb", "trackio"])
def named(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Board]:
    """Return a board's name and its stand-in."""
    return request.param, stand_in(request.param, monkeypatch)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    """Return a stand-in for wandb."""
    return stand_in("wandb", monkeypatch)


def stand_in(name: str, monkeypatch: pytest.MonkeyPatch) -> Board:
    board, module = Board(), ModuleType(name)
    vars(module).update(init=board.init, Settings=lambda **given: given)
    monkeypatch.setitem(sys.modules, name, module)
    return board


class Kill(Notes):
    """An observer that ends the process, so to speak, when a training row of a step is recorded."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def update(self, metrics: Metrics) -> None:
        super().update(metrics)
        if metrics["kind"] == "train" and metrics["step"] == self.step:
            raise KeyboardInterrupt


def killed(config: TrainConfig, step: int) -> None:
    """Run, and stop without a word at a step."""
    trainer = Trainer(config, resume="auto", observer=Kill(step))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.close()


def resumed(config: TrainConfig) -> Notes:
    """Run to the end; returns what was said."""
    notes = Notes()
    trainer = Trainer(config, resume="auto", observer=notes)
    trainer.train()
    trainer.close()
    return notes


def recorded(config: TrainConfig) -> list[tuple[int, dict[str, float]]]:
    return [(row["step"], flat_values(row)) for row in read_rows(config.output / "metrics.jsonl")]


VOLATILE = ("seconds", "tokens_per_second", "memory_bytes")


def steady(rows: list[tuple[int, dict[str, float]]]) -> list[tuple[int, dict[str, float]]]:
    """Return the rows without what differs when a step is done again."""
    return [(step, {name: values[name] for name in values if name not in VOLATILE}) for step, values in rows]


def test_names_and_numbers_of_rows() -> None:
    train = {
        "kind": "train", "step": 3, "num_tokens": 90, "loss": 2.5, "loss_by_mask_rate": {"0.0-0.1": 1.5},
        "loss_by_block_size": {"8": 2.0}, "memory_bytes": None, "learning_rate": 1e-3,
    }  # fmt: skip
    assert flat_values(train) == {
        "num_tokens": 90, "loss": 2.5, "loss_by_mask_rate/0.0-0.1": 1.5, "loss_by_block_size/block_8": 2.0,
        "learning_rate": 1e-3,
    }  # fmt: skip
    validation = {"kind": "validation", "step": 3, "perplexity": {"8": 9.0}, "ar_perplexity": None, "exact": True}
    assert flat_values(validation) == {"validation/perplexity/block_8": 9.0}
    assert flat_values({"kind": "skipped", "step": 3, "skipped": 1, "reason": "nan"}) == {"skipped/skipped": 1}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what a TensorBoard shows of a folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder)).Reload()
    return {name: [(each.step, each.value) for each in found.Scalars(name)] for name in found.Tags()["scalars"]}


def events(folder: Path) -> Counter[tuple[str, int]]:
    """Return how often a name and step was written, whatever a reader makes of it."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    return Counter(
        (value.tag, event.step)
        for path in folder.iterdir()
        for event in loader.EventFileLoader(str(path)).Load()
        for value in event.summary.value
    )


def assert_shows(shown: dict[str, list[tuple[int, float]]], rows: list[tuple[int, dict[str, float]]]) -> None:
    wanted: dict[str, list[tuple[int, Any]]] = {}
    for step, values in rows:
        for name, value in values.items():
            wanted.setdefault(name, []).append((step, pytest.approx(value, rel=1e-5)))
    assert shown == wanted


def test_tensorboard_shows_metrics_jsonl(files: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(files, tmp_path / "run", tracking={"tensorboard": True})
    Trainer(config).train()
    found = scalars(tmp_path / "run" / "tensorboard")
    assert {"loss", "grad_norm", "learning_rate", "num_tokens", "tokens_per_second", "mask_ratio"} <= set(found)
    assert next(step for step, _ in found["validation/perplexity/block_4"]) == 0
    assert_shows(found, recorded(config))


@pytest.mark.parametrize("step", [1, 4])
def test_tensorboard_of_a_resumed_run_has_each_step_once(files: dict[str, Path], tmp_path: Path, step: int) -> None:
    config = config_of(files, tmp_path / "run", tracking={"tensorboard": True}, **STOPPED)
    killed(config, step)
    resumed(config)
    folder = tmp_path / "run" / "tensorboard"
    assert events(folder)["loss", step] == 2, "otherwise this shows nothing"
    assert_shows(scalars(folder), recorded(config))


def test_events_of_a_killed_run_are_on_disk(files: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(files, tmp_path / "run", tracking={"tensorboard": True})
    with Trainer(config).boards as boards:
        boards.log({"kind": "train", "step": 1, "loss": 2.0})
        assert scalars(tmp_path / "run" / "tensorboard") == {"loss": [(1, 2.0)]}


def test_a_board_gets_every_row(
    named: tuple[str, Board], files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, board = named
    config = config_of(files, tmp_path / "run", tracking={name: True, "project": "mine", "name": "first"})
    Trainer(config).train()
    assert board.only() == recorded(config)
    (call,) = board.calls
    assert call["project"] == "mine"
    assert call["name"].startswith("first")
    assert call["resume"] == "allow"
    assert call["config"]["data"]["row_length"] == 64
    assert board.ended == [0 if name == "wandb" else None]
    captured = capsys.readouterr()
    assert "greeting" in captured.err
    assert captured.out == "", "stdout is for results"


def test_neither_code_nor_output_is_sent(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = stand_in("wandb", monkeypatch)
    Trainer(config_of(files, tmp_path / "run", tracking={"wandb": True})).close()
    wanted = {"console": "off", "disable_git": True, "save_code": False, "disable_code": True}
    assert board.calls[0]["settings"] == wanted
    assert board.calls[0]["dir"] == str(tmp_path / "run")


@pytest.mark.parametrize("step", [1, 4])
def test_a_resumed_run_goes_on_in_its_entry_and_repeats_nothing(
    named: tuple[str, Board], files: dict[str, Path], tmp_path: Path, step: int
) -> None:
    name, board = named
    config = config_of(files, tmp_path / "run", tracking={name: True}, **STOPPED)
    killed(config, step)
    killed(config, step - 1 if step > 1 else 1)  # what the first attempt sent is no longer in metrics.jsonl
    resumed(config)
    assert len(board.calls) == 3
    assert steady(board.only()) == steady(recorded(config)), "one entry, each row once"
    other = config_of(files, tmp_path / "elsewhere" / "run", tracking={name: True})
    resumed(other)
    assert len(board.entries) == 2, "another run of the same name is another entry"


def test_a_board_that_is_switched_on_later_gets_what_was(board: Board, files: dict[str, Path], tmp_path: Path) -> None:
    killed(config_of(files, tmp_path / "run", **STOPPED), 6)
    config = config_of(files, tmp_path / "run", tracking={"wandb": True}, **STOPPED)
    resumed(config)
    assert board.only() == recorded(config)


def test_a_board_that_was_off_for_a_while_has_no_gap(board: Board, files: dict[str, Path], tmp_path: Path) -> None:
    on = config_of(files, tmp_path / "run", tracking={"wandb": True}, **STOPPED)
    killed(on, 3)
    killed(config_of(files, tmp_path / "run", **STOPPED), 5)
    resumed(on)
    assert steady(board.only()) == steady(recorded(on))


def test_a_board_that_fails_does_not_stop_the_run(board: Board, files: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(files, tmp_path / "run", tracking={"wandb": True}, **STOPPED)
    board.fails_at = 3
    notes = Notes()
    trainer = Trainer(config, observer=notes)
    stop_at = Kill(7)
    trainer.observer = SimpleNamespace(  # type: ignore[assignment]
        start=notes.start, update=stop_at.update, message=notes.message, close=notes.close
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.close()
    said = [line for line in notes.lines if line.startswith("tracking")]
    assert len(said) == 1
    assert "wandb failed at step 3 (OSError: network is unreachable)" in said[0]
    assert len(board.ended) == 1, "closed then, and not again"
    assert {step for step, _ in board.only()} == {0, 1, 2}
    board.fails_at = None
    resumed(config)
    assert steady(board.only()) == steady(recorded(config)), "the resumed run sends what was missing"


def test_a_board_that_cannot_be_closed_does_not_stop_the_run(
    board: Board, files: dict[str, Path], tmp_path: Path
) -> None:
    board.fails_to_close = True
    notes = resumed(config_of(files, tmp_path / "run", tracking={"wandb": True}))
    said = [line for line in notes.lines if line.startswith("tracking")]
    assert len(said) == 1
    assert "wandb could not be closed" in said[0]


@pytest.mark.parametrize(("error", "code"), [(RuntimeError("a defect"), 1), (None, 0)])
def test_wandb_is_told_how_the_run_ended(
    error: Exception | None, code: int, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = stand_in("wandb", monkeypatch)
    trainer = Trainer(config_of(files, tmp_path / "run", tracking={"wandb": True}))
    raised = error or Interrupted("stopped", checkpoint=tmp_path)

    def fail() -> None:
        raise raised

    monkeypatch.setattr(trainer, "train_step", fail)
    with pytest.raises(type(raised)):
        trainer.train()
    trainer.close()
    assert board.ended == [code]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_package_that_is_missing_is_one_line_before_anything_is_written(
    name: str, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError) as caught:
        Trainer(config_of(files, tmp_path / "run", tracking={name: True}))
    text = str(caught.value)
    assert text.startswith(f"train.tracking.{name}: true, but the package {name} cannot be imported (")
    assert text.endswith(f"; run pip install 'difflm[{name}]', or set it to false")
    assert "\n" not in text
    assert not (tmp_path / "run").exists()


def test_a_board_that_does_not_start_is_one_line_without_secrets(
    named: tuple[str, Board], files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, board = named
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    board.fails_to_start, board.error = True, ValueError("bad key\n0123456789abcdef at https://me:pw@host/x")
    config = config_of(files, tmp_path / "run", tracking={name: True})
    with pytest.raises(ConfigError) as caught:
        Trainer(config)
    wanted = "does not start (ValueError: bad key *** at https://***@host/x); mend that, or set it to false"
    assert str(caught.value) == f"train.tracking.{name}: true, but it {wanted}"
    board.fails_to_start = False
    resumed(config)
    assert board.only() == recorded(config)


def test_long_errors_are_cut() -> None:
    assert len(shown(OSError("x" * 1000))) == 200


def test_a_record_that_is_damaged_is_one_line(files: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(files, tmp_path / "run", tracking={"tensorboard": True})
    config.output.mkdir()
    for text in ("{", '{"wandb": 1}', '{"wandb": {"identity": "x", "lacks": [1], "ahead": []}}', "[1]"):
        (config.output / RECORD).write_text(text)
        with pytest.raises(CheckpointError, match=f"{RECORD}: cannot be read; remove it"):
            Boards(config, say=print).open(0)


def test_nothing_is_imported_or_written_unless_asked(files: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(files, tmp_path / "run")
    for name in ("tensorboard", "wandb", "trackio"):
        assert name not in vars(sys.modules["difflm.training.tracking"])
    with Trainer(config).boards as boards:
        boards.log({"kind": "train", "step": 1, "loss": 2.0})
    assert not (config.output / RECORD).exists()
    assert not (config.output / "tensorboard").exists()


def test_the_first_missing_row_is_remembered_by_step_and_kind(
    board: Board, files: dict[str, Path], tmp_path: Path
) -> None:
    config = config_of(files, tmp_path / "run", tracking={"wandb": True})
    config.output.mkdir()
    rows = [{"kind": kind, "step": step, "loss": 1.0} for step in (1, 2) for kind in ("train", "validation")]
    boards, log = Boards(config, say=lambda text: None), MetricsLog(config.output / "metrics.jsonl", step=0)
    boards.open(0)
    for row in rows:
        if row == rows[3]:
            board.fails_at = 2
        log.write(row)
        boards.log(row)
    boards.close()
    assert json.loads((config.output / RECORD).read_text())["wandb"]["lacks"] == [2, "validation"]
    board.fails_at = None
    with Boards(config, say=print) as again:
        again.open(2)
    assert board.only() == [(row["step"], flat_values(row)) for row in rows]
