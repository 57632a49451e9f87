"""Exact resume: N steps are k steps, an interruption and N - k steps, bit for bit.

The interruption is a real SIGINT, sent from the observer after step k; what is compared is what lies on the disk: the
weights and moments of the last checkpoint, byte by byte, and metrics.jsonl without its times.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from difflm.data.loader import Loader
from difflm.errors import Interrupted
from difflm.plots import read_rows
from difflm.runs import train
from difflm.training.config import TrainConfig
from difflm.training.metrics import Metrics
from difflm.training.state import MOMENTS, checkpoint_folders, read_state
from difflm.training.trainer import Trainer
from tests.standins import write_texts
from tests.training.runs import Notes, config_of

LADDER = [{"block_size": 1, "tokens": 700}, {"block_size": "row", "tokens": 700}, {"block_size": 8, "tokens": 900}]
TIMES = ("seconds", "tokens_per_second", "memory_bytes")


class StopAfter(Notes):
    """Sends SIGINT to this process after given steps."""

    def __init__(self, *steps: int) -> None:
        super().__init__()
        self.steps = steps

    def update(self, metrics: Metrics) -> None:
        super().update(metrics)
        if metrics["kind"] == "train" and metrics["step"] in self.steps:
            os.kill(os.getpid(), signal.SIGINT)


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name not in TIMES} for row in read_rows(run / "metrics.jsonl")
    ]


def _digest(file: Path) -> str:
    # Not the bytes: the message about two that differ would take minutes.
    return hashlib.sha256(file.read_bytes()).hexdigest()


def result_of(checkpoint: Path) -> tuple[str, str, dict[str, Any]]:
    state = dataclasses.asdict(read_state(checkpoint)) | {"seconds": 0.0}
    return _digest(checkpoint / "model.safetensors"), _digest(checkpoint / MOMENTS), state


def run_with_stops(config: TrainConfig, stops: Sequence[int]) -> Path:
    """Run to the end, interrupted after each of `stops` steps."""
    for step in stops:
        with pytest.raises(Interrupted) as caught:
            train(config, resume="auto", observer=StopAfter(step))
        assert read_state(caught.value.checkpoint).step == step
    return train(config, resume="auto")


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_interrupted_runs_end_as_whole_ones(
    files: dict[str, Path], tmp_path: Path, dtype: str, accumulation: int
) -> None:
    """k = 1, mid-epoch, the end of an epoch, each stage boundary, the step before the last, and all in one run."""
    options: dict[str, Any] = {
        "curriculum": LADDER,
        "dtype": dtype,
        "rows_per_batch": 2 if accumulation == 1 else 1,
        "accumulation": accumulation,
        "embedding_noise": {"sigma": 0.1, "stages": 2},
        "objective": {"kind": "block_diffusion", "complementary": True, "annealing_tokens": 900},
        "checkpoint": {"every_tokens": 900, "keep": 3},
        "optimizer": {"learning_rate": 1e-3, "mask_row_lr_scale": 2.0, "weight_decay": 0.1},
    }
    texts = write_texts(tmp_path / "texts.jsonl", documents=22)
    whole = config_of(files | {"texts": texts}, tmp_path / "whole", **options)
    expected, rows = result_of(train(whole)), rows_of(whole.output)
    steps = [row for row in rows if row["kind"] == "train"]
    last = steps[-1]["step"]
    assert [row["step"] for row in steps] == list(range(1, last + 1))
    pairs = list(itertools.pairwise(steps))
    boundaries = [before["step"] for before, after in pairs if before["stage"] != after["stage"]]
    epochs = [row["step"] for row in steps if row["epoch"] > 0][:1]
    assert len(boundaries) == 2
    assert epochs[0] < last
    points = sorted({1, 2, *boundaries, *(each + 1 for each in boundaries), *epochs, last - 1} - {last})
    # One run that stops everywhere, and two that stop once: no stop may hide what another one breaks.
    for number, stops in enumerate([points, [boundaries[0]], [epochs[0]]]):
        part = dataclasses.replace(whole, output=tmp_path / f"part-{number}")
        assert result_of(run_with_stops(part, stops)) == expected, stops
        assert rows_of(part.output) == rows, stops


def test_stopping_in_the_last_step_is_finishing(files: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(files, tmp_path / "run")
    whole = train(dataclasses.replace(config, output=tmp_path / "whole"))
    last = read_state(whole).step
    assert result_of(train(config, observer=StopAfter(last))) == result_of(whole)
    notes = Notes()
    train(config, resume="auto", observer=notes)
    assert "nothing is left to do" in notes.lines[0]


def test_a_signal_saves_once_and_gives_the_folder_and_the_handlers_back(files: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(files, tmp_path / "run", checkpoint={"every_tokens": 1})
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    notes = StopAfter(2)
    with pytest.raises(Interrupted, match=r"SIGINT: stopped after step 2, everything is saved in .*step-00000002"):
        train(config, observer=notes)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert sum("step-00000002" in line for line in notes.lines) == 1
    assert not (config.output / ".lock").exists()


def test_a_run_in_a_thread_of_its_own(files: dict[str, Path], tmp_path: Path) -> None:
    """Handlers cannot be set there, and are not needed."""
    config = config_of(files, tmp_path / "run")
    found: list[Path] = []
    thread = threading.Thread(target=lambda: found.append(train(config)))
    thread.start()
    thread.join()
    assert found == checkpoint_folders(config.output)[-1:]
    assert found


def test_a_run_goes_back_to_the_newest_whole_checkpoint_and_ends_the_same(
    files: dict[str, Path], tmp_path: Path
) -> None:
    """The newest checkpoint is cut short: it is named, left in place, and replaced when the run comes there again."""
    options: dict[str, Any] = {"curriculum": LADDER, "checkpoint": {"every_tokens": 300, "keep": 2, "keep_best": 0}}
    whole = config_of(files, tmp_path / "whole", **options)
    expected = result_of(train(whole))
    part = dataclasses.replace(whole, output=tmp_path / "part")
    with pytest.raises(Interrupted) as caught:
        train(part, observer=StopAfter(8))
    damaged = caught.value.checkpoint
    (damaged / MOMENTS).write_bytes((damaged / MOMENTS).read_bytes()[:-1])
    notes = StopAfter(7)
    with pytest.raises(Interrupted):
        train(part, resume="auto", observer=notes)
    assert any(line.startswith(f"skipped a checkpoint: {damaged / MOMENTS}: damaged") for line in notes.lines)
    assert damaged.exists()
    assert result_of(train(part, resume="auto")) == expected
    assert rows_of(part.output) == rows_of(whole.output)


def test_metrics_survive_a_torn_line_and_later_rows(files: dict[str, Path], tmp_path: Path) -> None:
    """A kill leaves rows of steps after the checkpoint, and half a line."""
    whole = config_of(files, tmp_path / "whole")
    train(whole)
    part = dataclasses.replace(whole, output=tmp_path / "part")
    with pytest.raises(Interrupted):
        train(part, observer=StopAfter(2))
    log = part.output / "metrics.jsonl"
    lines = (whole.output / "metrics.jsonl").read_text().splitlines()
    third = next(line for line in lines if '"step": 3,' in line)
    log.write_text(f"{log.read_text()}{third}\n{third[:40]}")
    train(part, resume="auto")
    assert rows_of(part.output) == rows_of(whole.output)


def test_the_noise_of_a_row_is_its_own(files: dict[str, Path], tmp_path: Path) -> None:
    """Batch size, accumulation and a resume change neither what is masked in a row nor what its loss weighs."""
    seen: list[dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]] = []
    for rows, accumulation, position in ((1, 1, 0), (4, 1, 0), (2, 3, 0), (3, 1, 5)):
        trainer = Trainer(
            config_of(
                files, tmp_path / f"{rows}-{accumulation}-{position}", rows_per_batch=rows, accumulation=accumulation
            )
        )
        total = 3 * len(trainer.rows)
        trainer.loader = Loader(trainer.loader.order, dataclasses.replace(trainer.loader.state, position=position))
        found: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        while len(found) < total - 2 * position:
            for inputs in trainer._draw(trainer.objective_at(0))[0]:
                owner_M = inputs.terms[0].row_M // inputs.token_BN.shape[1]
                for index, key in enumerate(zip(inputs.row_B.tolist(), inputs.epoch_B.tolist(), strict=True)):
                    term = inputs.terms[0]
                    place_M = term.place_M[owner_M == index] % trainer.config.data.row_length
                    found[key] = place_M, term.weight_M[owner_M == index]
        seen.append(found)
        trainer.close()
    for other in seen[1:]:
        common = seen[0].keys() & other.keys()
        assert len(common) > len(seen[0]) // 2
        for key in common:
            assert all(torch.equal(*pair) for pair in zip(seen[0][key], other[key], strict=True)), key
    first, second = (seen[0][key][0] for key in ((0, 0), (0, 1)))
    assert not torch.equal(first, second)  # another epoch is another draw
