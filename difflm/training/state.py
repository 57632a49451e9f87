"""Checkpoints of a run: a model folder that loads as it is, plus counters and optimiser moments; no pickle.

run/config.yaml                      the resolved configuration; runs again
run/metrics.jsonl, run/training.png
run/checkpoints/step-00000123/       model folder (config, weights in float32, tokenizer, card)
    training_state.json              counters and validation figures; its presence completes the checkpoint
    optimizer.safetensors            moments of AdamW; kept in the newest checkpoint only
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from difflm.checkpoints.loading import LoadedModel
from difflm.checkpoints.saving import save_model
from difflm.errors import CheckpointError
from difflm.training.optim import Optimizer

STATE, MOMENTS = "training_state.json", "optimizer.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """Where a run stands.

    Attributes:
        step: optimiser steps done.
        tokens: training tokens done (no padding; a complementary view counts once).
        epoch, position: of the row loader.
        stage: index of the curriculum stage of the last step.
        block_size: block size of that stage in tokens; None for next-token training.
        data: fingerprint of the packed training rows.
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
    data: str = ""
    validation: dict[str, float] = field(default_factory=dict)
    ar_perplexity: float | None = None
    seconds: float = 0.0


def checkpoint_folders(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run folder, oldest first."""
    folders = sorted((run / "checkpoints").glob("step-*"))
    return [each for each in folders if (each / STATE).is_file()]


def read_state(checkpoint: Path) -> TrainingState:
    """Return the counters of a checkpoint."""
    try:
        return TrainingState(**json.loads((checkpoint / STATE).read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError, TypeError) as error:
        raise CheckpointError(f"{checkpoint / STATE}: cannot be read ({error}); delete this checkpoint") from None


def save_checkpoint(
    run: Path, loaded: LoadedModel, optimizer: Optimizer, state: TrainingState, *, updates: dict[str, Any]
) -> Path:
    """Write a checkpoint aside and rename it into place; return its folder."""
    target = run / "checkpoints" / f"step-{state.step:08d}"
    aside = target.with_name(f".{target.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(parents=True, exist_ok=True)
    save_model(loaded, aside, config_updates=updates)
    save_file(optimizer.named_state(), aside / MOMENTS)
    (aside / STATE).write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    return target


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


def best_checkpoints(run: Path, *, block_size: int | None, count: int) -> list[Path]:
    """Return the `count` checkpoints with the lowest validation perplexity among those of one block size.

    Args:
        run: run folder.
        block_size: final block size of the curriculum; checkpoints of other stages are never candidates.
        count: k.
    """
    scored = []
    for folder in checkpoint_folders(run):
        state = read_state(folder)
        key = str(block_size)
        value = state.ar_perplexity if block_size is None else state.validation.get(key)
        if state.block_size == block_size and value is not None:
            scored.append((value, folder))
    return [folder for _, folder in sorted(scored)[:count]]


def prune(run: Path, *, keep: int, keep_best: int, block_size: int | None) -> None:
    """Delete what is no longer needed: optimiser moments of all but the newest checkpoint, and old checkpoints.

    Args:
        run: run folder.
        keep: newest checkpoints that stay.
        keep_best: merge candidates that stay.
        block_size: final block size (see `best_checkpoints`).
    """
    folders = checkpoint_folders(run)
    protected = set(folders[-keep:]) | set(best_checkpoints(run, block_size=block_size, count=keep_best))
    for folder in folders[:-1]:
        if folder in protected:
            (folder / MOMENTS).unlink(missing_ok=True)
        else:
            # Renamed first: an interrupted deletion leaves no half checkpoint behind.
            doomed = folder.with_name(f".{folder.name}.deleting")
            folder.rename(doomed)
            shutil.rmtree(doomed)
