"""How long each part of the demo is, and the two runs' configurations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difflm.training.config import TrainConfig
from difflm.training.config_io import config_from_tree

BLOCK_SIZE = 8
WINDOW = 16
ROW_LENGTH = 256
DRAFTING_WEIGHTS = ["*.query", "*.key", "*.value", "*.gate", "*.up"]
"""What the drafting adapter stands beside: without the outputs it drafts as well, and each pair costs calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes of the demo.

    Attributes:
        ladder: block-size curriculum of the text stage: (block size or "row", tokens).
        task_tokens: tokens of the task stage.
        task_items: training items written for the task; more than are used.
        draft_tokens: tokens of the adapter that drafts for the AR control.
        validation_rows: rows of every text validation.
        fresh, unseen: items of the main rows of the table.
        side_fresh, side_unseen: items of the side rows.
        control_fresh, control_unseen: items of the AR control.
        exact: items that the AR control and the lossless form decode in float32, to compare their answers.
        thresholds: acceptance thresholds of the table, the main one first.
        paper: the paper's own parametrisation (no shift, block-causal clean stream) instead of the shifted,
            token-causal one that learns faster on so few tokens.
    """

    ladder: tuple[tuple[int | str, int], ...]
    task_tokens: int
    task_items: int = 4000
    draft_tokens: int = 110_000
    validation_rows: int = 12
    fresh: int = 120
    unseen: int = 60
    side_fresh: int = 40
    side_unseen: int = 20
    control_fresh: int = 60
    control_unseen: int = 40
    exact: int = 40
    thresholds: tuple[float, ...] = (0.99, 0.95, 0.9)
    paper: bool = False


FULL = Plan(
    ladder=((1, 2_000), (4, 4_000), ("row", 6_000), (32, 6_000), (8, 18_000)),
    task_tokens=90_000,
)
QUICK = Plan(
    ladder=((1, 500), (4, 1_000), ("row", 1_000), (8, 1_500)),
    task_tokens=8_000,
    draft_tokens=4_000,
    validation_rows=4,
    fresh=12,
    unseen=8,
    side_fresh=6,
    side_unseen=4,
    control_fresh=6,
    control_unseen=4,
    exact=4,
)


def text_run(plan: Plan, folder: Path, *, diffusion: bool) -> TrainConfig:
    """Return the text stage: the warm-up / stable / decay ladder, or its AR control on the same tokens."""
    stages: list[dict[str, Any]] = [{"block_size": size, "tokens": tokens} for size, tokens in plan.ladder]
    tokens = sum(count for _, count in plan.ladder)
    return _run(
        plan,
        folder,
        model=folder / "converted",
        output=folder / ("text" if diffusion else "text-ar"),
        files=("text-train.jsonl", "text-validation.jsonl"),
        stages=stages if diffusion else [{"tokens": tokens}],
        diffusion=diffusion,
        extra={"embedding_noise": {"sigma": 0.1, "stages": 2}} if diffusion else {},
        block_sizes=(1, 4, 8, 32),
        validation_rows=plan.validation_rows,
        keep_best=0,
    )


def task_run(plan: Plan, folder: Path, *, model: Path, diffusion: bool) -> TrainConfig:
    """Return the task stage: Eq. 5 in its plain form (prompt clean, loss on the answer), or its AR control."""
    stage: dict[str, Any] = {"tokens": plan.task_tokens}
    return _run(
        plan,
        folder,
        model=model,
        output=folder / ("task" if diffusion else "task-ar"),
        files=("task-train.jsonl", "task-validation.jsonl"),
        stages=[{**stage, "block_size": BLOCK_SIZE} if diffusion else stage],
        diffusion=diffusion,
        extra={},
        block_sizes=(BLOCK_SIZE,),
        validation_rows=6,
        keep_best=4 if diffusion else 0,
    )


def draft_run(plan: Plan, folder: Path, *, model: Path) -> TrainConfig:
    """Return the run of an adapter that drafts for the AR control, which itself stays as it is."""
    return _run(
        plan,
        folder,
        model=model,
        output=folder / "drafter",
        files=("task-train.jsonl", "task-validation.jsonl"),
        stages=[{"tokens": plan.draft_tokens, "block_size": WINDOW}],
        diffusion=True,
        extra={
            "objective": {"kind": "drafting", "noisy_rows": ROW_LENGTH, "ar_weight": 0.0, "diffusion_weight": 1.0},
            "lora": {"rank": 32, "alpha": 64.0, "targets": DRAFTING_WEIGHTS, "adapter_rows": "noisy"},
            "attention": "dense",  # rows are short, windows are many: faster than the split
            "optimizer": {"learning_rate": 2e-3},
            "lr_schedule": {"kind": "linear", "warmup_fraction": 0.03, "final_ratio": 0.0},
            "validation": {"rows": 6, "autoregressive": False},
        },
        block_sizes=(WINDOW,),
        validation_rows=6,
        keep_best=0,
    )


def _run(
    plan: Plan,
    folder: Path,
    *,
    model: Path,
    output: Path,
    files: tuple[str, str],
    stages: list[dict[str, Any]],
    diffusion: bool,
    extra: dict[str, Any],
    block_sizes: tuple[int, ...],
    validation_rows: int,
    keep_best: int,
) -> TrainConfig:
    tokens = sum(stage["tokens"] for stage in stages)
    # The AR co-loss keeps the clean stream a language model; a block-causal clean stream would leak the target.
    objective = {
        "kind": "block_diffusion",
        "weighting": "uniform",
        "ar_weight": 0.0 if plan.paper else 0.5,
    }
    tree: dict[str, Any] = {
        "model": str(model),
        "output": str(output),
        "data": {
            "paths": [str(folder / "data" / files[0])],
            "validation_paths": [str(folder / "data" / files[1])],
            "row_length": ROW_LENGTH,
        },
        "objective": objective if diffusion else {"kind": "next_token"},
        "curriculum": stages,
        "optimizer": {"learning_rate": 2e-4, "mask_row_lr_scale": 15.0 if diffusion else 1.0},
        "lr_schedule": {"kind": "wsd", "warmup_fraction": 0.03, "decay_fraction": 0.3, "final_ratio": 0.05},
        "rows_per_batch": 2,
        "recipe": f"demo-{output.name}",
        "dtype": "bfloat16",
        "head_chunk_rows": 1024,
        "validation": {"rows": validation_rows, "block_sizes": list(block_sizes)},
        # Candidates of the merge lie close together: at an eighth of the run apart the mean was worse than its best
        # member, at a twelfth it was better. Elsewhere a checkpoint only limits what an interruption loses.
        "checkpoint": {"every_tokens": max(tokens // (12 if keep_best else 6), 1), "keep": 1, "keep_best": keep_best},
        "log_every": 1,
        **extra,
    }
    return config_from_tree(tree)
