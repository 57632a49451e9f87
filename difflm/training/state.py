"""Checkpoints of a run: a model folder that loads as it is, plus counters and optimiser moments; no pickle.

run/config.yaml                      the resolved configuration; runs again
run/metrics.jsonl, run/training.png
run/checkpoints/step-00000123/       model folder (config, weights in float32, tokenizer, card), or an adapter's
    training_state.json              counters and validation figures
    optimizer.safetensors            moments of the optimiser; kept in the newest `checkpoint.keep` checkpoints
    manifest.json                    size and sha256 of every file, written last

A checkpoint is written aside, flushed, sealed with its manifest, read back, and only then renamed into place.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from difflm.checkpoints.adapter_saving import write_loaded_adapter
from difflm.checkpoints.fields import one_line
from difflm.checkpoints.folders import remove_folder, staged_folder, sync
from difflm.checkpoints.hf import listed, save_tensors
from difflm.checkpoints.loading import LoadedModel
from difflm.checkpoints.manifest import drop_file, read_manifest, seal_folder, verify_folder
from difflm.checkpoints.saving import write_loaded
from difflm.checkpoints.tokens import carried_text_files
from difflm.errors import CheckpointError
from difflm.models.adapters import adapter_parameters
from difflm.training.config import TrainConfig
from difflm.training.optim import Optimizer
from difflm.training.run_card import training_section

STATE, MOMENTS = "training_state.json", "optimizer.safetensors"
_MARGIN_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """Where a run stands.

    Attributes:
        step: optimiser steps done, skipped ones included.
        tokens: training tokens done (no padding; a complementary view counts once).
        epoch, position: of the row loader.
        stage: index of the curriculum stage of the last step.
        block_size: block size of that stage in tokens; None for next-token training.
        skipped: steps left out because their loss or gradient was not finite.
        data, validation_data: fingerprints of the packed training and validation rows.
        model, tokenizer: hashes of the files the run started from.
        validation: block size -> perplexity, as in metrics.jsonl; empty if not validated at this step.
        ar_perplexity: AR perplexity at this step, if validated.
        seconds: training time so far.
    """

    step: int = 0
    tokens: int = 0
    epoch: int = 0
    position: int = 0
    stage: int = 0
    block_size: int | None = None
    skipped: int = 0
    data: str = ""
    validation_data: str = ""
    model: str = ""
    tokenizer: str = ""
    validation: dict[str, float] = field(default_factory=dict)
    ar_perplexity: float | None = None
    seconds: float = 0.0


def checkpoint_folders(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run folder, oldest first; their content is not verified."""
    folders = sorted((run / "checkpoints").glob("step-*"))
    return [each for each in folders if (each / STATE).is_file()]


def read_state(checkpoint: Path) -> TrainingState:
    """Return the counters of a checkpoint.

    Raises:
        CheckpointError: the file is not one of ours; the message names the field.
    """
    path = checkpoint / STATE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({one_line(error)}); delete this checkpoint") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(raw).__name__}, expected an object; delete this checkpoint")
    known = {each.name: str(each.type) for each in dataclasses.fields(TrainingState)}
    for name, value in raw.items():
        if name not in known:
            raise CheckpointError(f"{path}: unknown field {name!r}; it is of another version of difflm, use that one")
        if not _fits(value, known[name]):
            raise CheckpointError(
                f"{path}: {name} is {value!r}, expected {_WORDS[known[name]]}; delete this checkpoint"
            )
    return TrainingState(**raw)


_WORDS = {
    "int": "a whole number of at least 0",
    "int | None": "a whole number of at least 0, or null",
    "float": "a number",
    "float | None": "a number or null",
    "str": "a string",
    "dict[str, float]": "an object of numbers",
}


def _fits(value: Any, kind: str) -> bool:
    """Return whether a JSON value is of a field's type; counters are never negative."""
    if value is None:
        return kind.endswith("| None")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match kind.removesuffix(" | None"):
        case "int":
            return number and isinstance(value, int) and value >= 0
        case "float":
            return number
        case "str":
            return isinstance(value, str)
    return isinstance(value, dict) and all(_fits(each, "float") for each in value.values())


def newest_verified(run: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that is whole and resumable, and one line about each newer one that is not.

    Damaged checkpoints are left where they are.

    Raises:
        CheckpointError: there are checkpoints, and none of them can be resumed.
    """
    skipped: list[str] = []
    for folder in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        try:
            if MOMENTS not in verify_folder(folder, spare=(MOMENTS,)):
                raise CheckpointError(f"{folder}: has no {MOMENTS} any more (kept for merging)")
            read_state(folder)
        except CheckpointError as error:
            skipped.append(str(error))
        else:
            return folder, skipped
    if skipped:
        raise CheckpointError(
            f"{run / 'checkpoints'}: no checkpoint can be resumed: {listed(skipped, 3)}; restore one from a copy, or "
            "move the run folder away to start anew"
        )
    return None, []


def save_checkpoint(
    run: Path,
    loaded: LoadedModel,
    optimizer: Optimizer,
    state: TrainingState,
    *,
    updates: dict[str, Any],
    card: str = "",
) -> Path:
    """Write a checkpoint aside, verify what the disk holds and rename it into place; return its folder.

    `card` is added to its model card, where there is one.

    Raises:
        CheckpointError: too little space, or the disk fails; earlier checkpoints are untouched.
    """
    target = run / "checkpoints" / f"step-{state.step:08d}"
    try:
        require_space(run, loaded, optimizer)
        with staged_folder(target, replace=True, seal=seal_folder) as stage:
            for log in sorted(run.glob("*.jsonl")):
                sync(log)  # before the checkpoint that says these steps are done
            write = write_loaded if loaded.adapter is None else write_loaded_adapter
            write(loaded, stage, config_updates=updates)
            moments = {name: each.cpu().contiguous() for name, each in optimizer.named_state().items()}
            save_tensors(stage / MOMENTS, moments)
            (stage / STATE).write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
            readme = stage / "README.md"
            if readme.is_file():
                readme.write_text(readme.read_text(encoding="utf-8") + card, encoding="utf-8")
    except CheckpointError as error:
        earlier = [each.name for each in checkpoint_folders(run) if each != target]
        rest = f"; {earlier[-1]} is as it was, resume from it" if earlier else "; there is no earlier checkpoint"
        raise CheckpointError(f"{error}{rest}") from error
    return target


def keep_checkpoint(
    config: TrainConfig, loaded: LoadedModel, optimizer: Optimizer, state: TrainingState
) -> tuple[Path, list[str]]:
    """Write the checkpoint of a run's current step, then delete what it replaces; return (its folder, failures).

    Raises:
        CheckpointError: see `save_checkpoint`; nothing was deleted.
    """
    updates: dict[str, Any] = {"block_size": state.block_size} if state.block_size else {}
    updates["difflm"] = {"recipe": config.recipe}
    figures = {"perplexity": state.validation, "ar_perplexity": state.ar_perplexity}
    card = training_section(config, tokens=state.tokens, **figures)
    folder = save_checkpoint(config.output, loaded, optimizer, state, updates=updates, card=card)
    settings, final = config.checkpoint, config.block_sizes[-1]
    return folder, prune(
        config.output,
        folder,
        keep=settings.keep,
        keep_best=settings.keep_best,
        block_size=final,
        first_stage=config.final_stage,
    )


def require_space(run: Path, loaded: LoadedModel, optimizer: Optimizer) -> None:
    """Check that the disk of a run has room for one more checkpoint.

    Raises:
        CheckpointError: it has not.
    """
    written = adapter_parameters(loaded.model).values() if loaded.adapter else loaded.model.parameters()
    tensors = [*written, *optimizer.named_state().values()]
    needed = sum(each.numel() * each.element_size() for each in tensors) + _MARGIN_BYTES
    if loaded.path.is_dir() and loaded.adapter is None:
        needed += sum(file.stat().st_size for file in carried_text_files(loaded.path))
    free = shutil.disk_usage(run).free
    if free < needed:
        raise CheckpointError(
            f"train.output: {run} has {free / 2**20:.1f} MiB free, a checkpoint takes {needed / 2**20:.1f} MiB; free "
            "space, or lower train.checkpoint.keep and train.checkpoint.keep_best"
        )


def load_moments(checkpoint: Path, optimizer: Optimizer) -> None:
    """Restore the optimiser from a checkpoint."""
    path = checkpoint / MOMENTS
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; the run cannot be resumed from this checkpoint, use the newest one")
    try:
        moments = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: damaged or truncated ({error}); delete this checkpoint to resume from the one before it"
        ) from None
    optimizer.load_named_state(moments, where=str(path))


def best_checkpoints(run: Path, *, block_size: int | None, count: int, first_stage: int = 0) -> list[Path]:
    """Return the `count` checkpoints with the lowest validation perplexity among those of one block size.

    Args:
        run: run folder.
        block_size: final block size of the curriculum; checkpoints of other stages are never candidates.
        count: k.
        first_stage: earlier stages are never candidates, though they may have had that block size.
    """
    return _ranked(checkpoint_folders(run), block_size, first_stage)[:count]


def _ranked(folders: Sequence[Path], block_size: int | None, first_stage: int) -> list[Path]:
    scored = []
    for folder in folders:
        state = read_state(folder)
        if state.stage < first_stage:
            continue
        key = str(block_size)
        value = state.ar_perplexity if block_size is None else state.validation.get(key)
        if state.block_size == block_size and value is not None and not math.isnan(value):
            scored.append((value, folder))
    return [folder for _, folder in sorted(scored)]


def prune(
    run: Path, newest: Path, *, keep: int, keep_best: int, block_size: int | None, first_stage: int = 0
) -> list[str]:
    """Delete what is no longer needed, once `newest` is safely on the disk; return a line on each failure.

    Of the `keep` newest checkpoints everything stays, of merge candidates everything but the optimiser's moments.
    Damaged checkpoints are never counted and never deleted, nor are those of a later step than `newest` (of a
    time before the run went back to an older checkpoint).

    Args:
        run: run folder.
        newest: checkpoint of the current step, just written and verified.
        keep: newest checkpoints that stay resumable.
        keep_best: merge candidates that stay.
        block_size: final block size (see `best_checkpoints`).
        first_stage: of the last part of the run (see `best_checkpoints`).
    """
    folders = [each for each in checkpoint_folders(run) if each.name <= newest.name and _is_sound(each)]
    resumable = set([each for each in folders if MOMENTS in read_manifest(each)][-keep:])
    candidates = set(_ranked(folders, block_size, first_stage)[:keep_best])
    failures = []
    for folder in folders:
        try:
            if folder in candidates - resumable:
                drop_file(folder, MOMENTS)
            elif folder not in resumable:
                remove_folder(folder)
        except OSError as error:
            failures.append(f"{folder}: cannot be deleted ({error.strerror or one_line(error)}); it stays")
    return failures


def _is_sound(folder: Path) -> bool:
    """Return whether a checkpoint looks whole, by names and sizes; cheap enough for every save."""
    try:
        read_state(folder)
        return all((folder / name).stat().st_size == fact.size for name, fact in read_manifest(folder).items())
    except (CheckpointError, OSError):
        return False
