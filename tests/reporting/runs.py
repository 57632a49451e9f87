"""Run folders as the trainer leaves them, written by hand: no model is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from difflm.checkpoints.manifest import write_manifest
from difflm.training.config_io import config_from_tree, dump_config
from difflm.training.state import MOMENTS, STATE, TrainingState

Row = dict[str, Any]
TOTAL = 800


def train_row(step: int, **changes: Any) -> Row:
    row: Row = {
        "kind": "train",
        "step": step,
        "num_tokens": 100 * step,
        "epoch": 0,
        "stage": int(step > 4),
        "block_size": 4 if step <= 4 else 8,
        "loss": 5.0 / step,
        "loss_by_term": {"diffusion": 4.0 / step, "ar": 2.0 / step},
        "loss_by_mask_rate": {"0.1-0.2": 2.0, "0.9-1.0": 4.0},
        "tokens_by_mask_rate": {"0.1-0.2": 10, "0.9-1.0": 90},
        "masked_accuracy": 0.5,
        "mask_ratio": 0.6,
        "grad_norm": 1.5,
        "learning_rate": 1e-4,
        "tokens_per_second": 50.0,
        "memory_bytes": 2**30,
        "seconds": 2.0 * step,
    }
    return {**row, **changes}


def validation_row(step: int, **changes: Any) -> Row:
    row = {"kind": "validation", "step": step, "num_tokens": 100 * step}
    return {**row, "perplexity": {"4": 20.0, "8": 30.5, "16": 40.0}, "ar_perplexity": 19.25, **changes}


def write_run(folder: Path, rows: Sequence[Row] = (), *, samples: Sequence[Row] = (), **fields: Any) -> Path:
    tree: Row = {
        "model": "model",
        "output": str(folder),
        "data": {"paths": ["texts.jsonl"], "row_length": 64},
        "curriculum": [{"block_size": 4, "tokens": 400}, {"block_size": 8, "tokens": 400}],
        **fields,
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config_from_tree(tree)), encoding="utf-8")
    for name, lines in (("metrics.jsonl", rows), ("samples.jsonl", samples)):
        if lines:
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    return folder


def write_checkpoint(run: Path, state: TrainingState, *, moments: bool = True) -> Path:
    folder = run / "checkpoints" / f"step-{state.step:08d}"
    folder.mkdir(parents=True)
    (folder / STATE).write_text(json.dumps(asdict(state)), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(bytes(5000))
    if moments:
        (folder / MOMENTS).write_bytes(bytes(3000))
    write_manifest(folder)
    return folder


def state_at(step: int, **changes: Any) -> TrainingState:
    fields: Row = {"step": step, "tokens": 100 * step, "stage": int(step > 4), "block_size": 4 if step <= 4 else 8}
    return TrainingState(**{**fields, **changes})
