"""The folder of a run: created or recognised, locked, its configuration recorded and compared."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from difflm.checkpoints.folders import clear_leftovers, replace_text
from difflm.checkpoints.hf import listed
from difflm.errors import CheckpointError, ConfigError
from difflm.training import state as run_state
from difflm.training.config import TrainConfig
from difflm.training.config_io import config_to_tree, dump_config, load_config
from difflm.training.lock import LOCK, RunLock

Resume = Literal["auto", "never"]
RECORD = "config.yaml"

# What a resumed run may have otherwise than it began; every other field decides its numbers.
FREE = ("output", "recipe", "log_every", "checkpoint", "tracking", "samples", "nonfinite", "validation.every_tokens")
# Same mathematics, another order of sums: the run goes on, but no longer bit for bit.
ROUNDING = (
    "device",
    "threads",
    "attention",
    "activation_checkpointing",
    "head_chunk_rows",
    "validation.rows_per_batch",
)
# Where things are; what is there is compared by its hash (see `difflm.training.origin`).
CONTENT = ("model", "revision", "data.paths", "data.validation_paths", "data.format", "data.text_field", "data.records")


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run folder that is ours.

    Attributes:
        lock: held until the run ends.
        checkpoint: where to continue; None for a new run.
        notes: lines for the user.
    """

    lock: RunLock
    checkpoint: Path | None
    notes: tuple[str, ...]


def check_run(config: TrainConfig, resume: Resume) -> list[str]:
    """Compare a configuration with the run in its folder, if there is one; writes nothing; returns lines for the user.

    Raises:
        ConfigError: a folder that is not empty under "never" or is not a run, or a field that may not change.
    """
    run, record = config.output, config.output / RECORD
    if run.exists() and not run.is_dir():
        raise ConfigError(f"train.output: {run} is a file; choose another path for the run folder")
    if resume == "auto" and record.is_file():
        return _compare(config, record)
    # All that a run killed in its first moment leaves.
    mine = {run / LOCK, run / f".{RECORD}.partial"}
    if run.is_dir() and any(each not in mine for each in run.iterdir()):
        advice = "resume with --resume auto, or choose another folder" if record.is_file() else "choose another folder"
        raise ConfigError(f"train.output: {run} is not empty; {advice}")
    return []


def open_run(config: TrainConfig, resume: Resume) -> OpenRun:
    """Create or check the run folder, lock it and record the configuration.

    Raises:
        ConfigError: see `check_run`; or another process holds the folder, or it cannot be written.
        CheckpointError: there are checkpoints, but none is whole.
    """
    run = config.output
    check_run(config, resume)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"train.output: {run} cannot be created ({error.strerror}); choose another path") from None
    lock = RunLock(run)
    try:
        notes = check_run(config, resume)  # again: another process may have been here until now
        clear_leftovers(run / "checkpoints")
        checkpoint, skipped = run_state.newest_verified(run)
        replace_text(run / RECORD, dump_config(config))
    except OSError as error:
        lock.close()
        raise ConfigError(f"train.output: {run} cannot be written ({error.strerror}); choose another path") from None
    except BaseException:
        lock.close()
        raise
    notes += [f"skipped a checkpoint: {reason}" for reason in skipped]
    return OpenRun(lock, checkpoint, tuple([lock.note] * bool(lock.note) + notes))


def finished_checkpoint(config: TrainConfig) -> Path | None:
    """Return the last checkpoint of a run that has nothing left to do, None for any other run.

    Raises:
        ConfigError: a field that may not change, or another process is about to finish the run.
    """
    folders = run_state.checkpoint_folders(config.output)
    if not folders or not (config.output / RECORD).is_file():
        return None
    check_run(config, "auto")
    try:
        if run_state.read_state(folders[-1]).tokens < config.total_tokens:
            return None
        checkpoint, _ = run_state.newest_verified(config.output)
    except CheckpointError:
        return None  # damage is reported where the run is opened
    if checkpoint is None or checkpoint != folders[-1]:
        return None
    if any(checkpoint.parent.glob(".*")):
        # The process was killed as it tidied up.
        with contextlib.closing(RunLock(config.output)):
            clear_leftovers(checkpoint.parent)
    return checkpoint


def _compare(config: TrainConfig, record: Path) -> list[str]:
    """Return notes on fields that changed harmlessly since `record` was written; refuse the others."""
    try:
        recorded = load_config(record)
    except ConfigError as error:
        # A field alone would send the user to the file that was just given, which is sound.
        raise ConfigError(f"{record}: damaged, or of another version of difflm ({error}); restore it") from None
    changed = list(differences(config_to_tree(recorded), config_to_tree(config)))
    refused = [each for each in changed if not _is_under(each[0], (*FREE, *ROUNDING, *CONTENT))]
    if refused:
        name, theirs, mine = refused[0]
        others = f"; so do {listed(f'train.{each[0]}' for each in refused[1:])}" if refused[1:] else ""
        raise ConfigError(
            f"train.{name}: differs from the run in {record.parent} ({_shown(theirs)} there, {_shown(mine)} here)"
            f"{others}; resume with the recorded config.yaml, or choose another output folder"
        )
    return [
        f"train.{name}: {_shown(mine)} instead of {_shown(theirs)}; the run goes on, rounded differently"
        for name, theirs, mine in changed
        if _is_under(name, ROUNDING)
    ]


def differences(theirs: Any, mine: Any, *, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted name, value there, value here) of each field in which two configuration trees differ."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        for key in {**theirs, **mine}:
            path = f"{name}.{key}" if name else key
            yield from differences(theirs.get(key), mine.get(key), name=path)
    elif isinstance(theirs, list) and isinstance(mine, list) and len(theirs) == len(mine):
        for index, pair in enumerate(zip(theirs, mine, strict=True)):
            yield from differences(*pair, name=f"{name}[{index}]")
    elif theirs != mine:
        yield name, theirs, mine


def _is_under(name: str, fields: tuple[str, ...]) -> bool:
    return any(name == field or name.startswith((f"{field}.", f"{field}[")) for field in fields)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
