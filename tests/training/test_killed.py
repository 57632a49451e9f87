"""SIGKILL during steps and saves: whatever the moment, the resumed run ends where an undisturbed one ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from difflm.training.config_io import dump_config
from tests.training.runs import config_of


def trials(
    files: dict[str, Path], folder: Path, *, points: int, times: int, seed: int, **changes: Any
) -> list[dict[str, Any]]:
    config = config_of(
        files,
        folder / "unused",
        curriculum=[{"block_size": 4, "tokens": 500}, {"block_size": 8, "tokens": 500}],
        checkpoint={"every_tokens": 250, "keep": 1, "keep_best": 1},
        accumulation=2,
        rows_per_batch=1,
        **changes,
    )
    (folder / "config.yaml").write_text(dump_config(config))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.training.killed", str(folder / "config.yaml")),
            *("--points", str(points), "--times", str(times), "--seed", str(seed)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(found: list[dict[str, Any]], count: int) -> None:
    assert len(found) == count
    for trial in found:
        assert trial["equal"], trial
        assert trial["left"] == [], trial
    assert sum(len(trial["deaths"]) for trial in found) > count


@pytest.fixture
def memory() -> Iterator[Path]:
    """Return a folder in memory where there is one: a kill asks nothing of a disk, and its flushes take time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


def test_a_few_killed_runs_end_as_undisturbed_ones(files: dict[str, Path], memory: Path) -> None:
    check(trials(files, memory, points=3, times=1, seed=1), 4)


@pytest.mark.slow
def test_fifty_killed_runs_end_as_undisturbed_ones(files: dict[str, Path], memory: Path) -> None:
    found = trials(files, memory, points=40, times=10, seed=2)
    check(found, 50)
    events = {event for trial in found for event in trial["deaths"]}
    wanted = {"fsync", "rename", "replace", "metrics", "step", "_backward", "write training_state.json"}
    assert wanted < events
    assert {f"write {name}" for name in ("optimizer.safetensors", ".manifest.json.partial")} < events


@pytest.mark.slow
def test_killed_runs_of_a_mixture_end_as_undisturbed_ones(mixtures: dict[str, Path], memory: Path) -> None:
    """Biases of experts that move are weights like the others."""
    changes: dict[str, Any] = {"dtype": "bfloat16", "router": {"bias_update_rate": 1e-2, "balance_loss": 1e-2}}
    check(trials(mixtures, memory, points=6, times=2, seed=3, **changes), 8)
