"""What a run folder says about a run: configuration, rows of metrics, checkpoints, dumps; reads only."""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difflm.checkpoints.manifest import MANIFEST, read_manifest
from difflm.errors import CheckpointError, DataError
from difflm.plots import read_rows
from difflm.training.config import TrainConfig
from difflm.training.config_io import load_config
from difflm.training.lock import LOCK
from difflm.training.merge_methods import Best
from difflm.training.run_folder import RECORD
from difflm.training.state import MOMENTS, STATE, best_checkpoints, read_state

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFact:
    """One folder under `checkpoints/`.

    Attributes:
        name: of the folder.
        step, tokens, block_size, perplexity: of its counters; the perplexity is that of the run's final block size
            (of the AR loss in a next-token run), None if it was not validated.
        size: of the recorded files, bytes.
        resumable: the moments of the optimiser are there.
        rank: place among the checkpoints that `difflm merge` takes, from 1; None for others.
        damage: what is wrong with it; "" if every recorded file is there in its recorded size.
    """

    name: str
    step: int | None = None
    tokens: int | None = None
    block_size: int | None = None
    perplexity: float | None = None
    size: int = 0
    resumable: bool = False
    rank: int | None = None
    damage: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """A run, as its folder tells it.

    Attributes:
        folder: of the run, absolute.
        config: its configuration.
        config_text: config.yaml as it is written.
        status: "finished", "running", "stopped" or "unfinished", and why.
        train, validation, sampled, skipped: rows of metrics.jsonl by kind, in order.
        samples: rows of samples.jsonl.
        checkpoints: oldest first.
        dumps: names under `dumps/`.
    """

    folder: Path
    config: TrainConfig
    config_text: str
    status: tuple[str, str]
    train: Sequence[Row]
    validation: Sequence[Row]
    sampled: Sequence[Row]
    skipped: Sequence[Row]
    samples: Sequence[Row]
    checkpoints: Sequence[CheckpointFact]
    dumps: Sequence[str]

    @property
    def last(self) -> Row:
        """Return the last row that counts steps; one of zeros before the first."""
        rows = [*self.train[-1:], *self.skipped[-1:]]
        return max(rows, key=lambda row: row["step"], default={"step": 0, "num_tokens": 0, "seconds": 0.0})

    @property
    def restarts(self) -> int:
        """Return how often the run began anew at least: peak memory counts within a process, where it never falls."""
        peaks = [value for row in self.train if (value := number(row, "memory_bytes")) is not None]
        return sum(after < before for before, after in itertools.pairwise(peaks))


def number(row: Row, *names: str) -> float | None:
    """Return the number at a path of fields of a row; None if there is none, or it is not finite."""
    value: Any = row
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def read_run(run: Path) -> RunFacts:
    """Return what a run folder holds; a run in progress may be read.

    Raises:
        CheckpointError: it is no run folder.
        ConfigError: its config.yaml is not one of this version.
        DataError: a log is damaged before its last line.
    """
    record = run / RECORD
    if not record.is_file():
        raise CheckpointError(f"{run}: no {RECORD}, so not a run folder; give the output folder of `difflm train`")
    config = load_config(record)
    rows = _log(run / "metrics.jsonl")
    checkpoints = _checkpoints(run, config)
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("train", "validation", "samples")}
    return RunFacts(
        folder=run.absolute(),
        config=config,
        config_text=record.read_text(encoding="utf-8"),
        status=_status(run, config, checkpoints),
        train=kinds["train"],
        validation=kinds["validation"],
        sampled=kinds["samples"],
        skipped=[row for row in rows if row["kind"] == "skipped"],
        samples=_log(run / "samples.jsonl"),
        checkpoints=checkpoints,
        dumps=sorted(each.name for each in (run / "dumps").glob("step-*")),
    )


def _log(path: Path) -> list[Row]:
    """Return the rows of a log of the run; none if the run has not written it."""
    if not path.exists():
        return []
    rows = read_rows(path)
    for line, row in enumerate(rows, start=1):
        for name, kind, word in (("kind", str, "a string"), ("step", int, "a number"), ("num_tokens", int, "a number")):
            value = row.get(name) if isinstance(row, dict) else None
            if not isinstance(value, kind):
                raise DataError(f"{path}:{line}: {name} is {value!r}, expected {word}; the file is not one of a run")
    return rows


def _status(run: Path, config: TrainConfig, checkpoints: Sequence[CheckpointFact]) -> tuple[str, str]:
    done = max((each.tokens or 0 for each in checkpoints if not each.damage), default=0)
    if done >= config.total_tokens:
        return "finished", ""
    try:
        holder = json.loads((run / LOCK).read_text(encoding="utf-8"))
        process, host = int(holder["pid"]), str(holder["host"])
    except FileNotFoundError:
        return "stopped", "it goes on with `difflm train` on its config.yaml"
    except (OSError, ValueError, KeyError, TypeError):
        return "unfinished", "its lock file cannot be read"
    if host != platform.node() or os.name != "posix":
        return "unfinished", f"held by process {process} on {host}, which may have ended"
    if _is_alive(process):
        return "running", f"process {process}"
    return "stopped", f"its process {process} was killed; it goes on with `difflm train` on its config.yaml"


def _is_alive(process: int) -> bool:
    """Return whether a process of this machine exists; signal 0 only asks."""
    if process <= 0:
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _checkpoints(run: Path, config: TrainConfig) -> list[CheckpointFact]:
    final = config.block_sizes[-1]
    try:
        best = best_checkpoints(run, block_size=final, count=Best().count, first_stage=config.final_stage)
    except CheckpointError:
        best = []  # a damaged one, which its own line names; `difflm merge` refuses this run, too
    ranks = {folder.name: rank for rank, folder in enumerate(best, start=1)}
    folders = sorted((run / "checkpoints").glob("step-*"))
    return [_checkpoint(each, final, ranks.get(each.name)) for each in folders]


def _checkpoint(folder: Path, final: int | None, rank: int | None) -> CheckpointFact:
    if not (folder / STATE).is_file():
        return CheckpointFact(name=folder.name, damage=f"{STATE} is missing")
    try:
        state, files = read_state(folder), read_manifest(folder)
    except CheckpointError as error:
        return CheckpointFact(name=folder.name, damage=str(error).removeprefix(f"{folder}{os.sep}"))
    wrong = [name for name, fact in files.items() if _size(folder / name) != fact.size]
    return CheckpointFact(
        name=folder.name,
        step=state.step,
        tokens=state.tokens,
        block_size=state.block_size,
        perplexity=state.ar_perplexity if final is None else state.validation.get(str(final)),
        size=sum(fact.size for fact in files.values()) + (_size(folder / MANIFEST) or 0),
        resumable=MOMENTS in files and not wrong,
        rank=rank,
        damage=f"{wrong[0]} is missing or has another size than was written" if wrong else "",
    )


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None
