"""What a run computes: the micro-batches of each stage of its curriculum, and how many steps they make.

A stage's micro-batch is prepared by the run's own objective on rows of the run (where its data is at hand) or on rows
of one document each, so that mask share, views, model rows and attention tiles are those of the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from difflm.data.packing import PackedRows
from difflm.diffusion.noise import RowNoise
from difflm.training.build import at_block_size, curriculum_of, objective_of
from difflm.training.config import PreferenceConfig, TrainConfig
from difflm.types import PADDING, Batch, ModelInput, Parametrisation

SAMPLED_TOKENS, FEWEST_ROWS, MOST_ROWS = 16_384, 32, 64
"""Row positions over which a stage's mask share is averaged, and limits of the rows they make."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWork:
    """One stage of a run.

    Attributes:
        block_size: tokens; None for next-token training.
        tokens: training tokens of the stage.
        steps: optimiser steps.
        mask_share: masked / maskable positions; None where nothing is masked.
        micro_batch: one forward of the stage, ready for the model; in how much it masks, the middle one of some.
        heaviest: the one of them that masks most.
    """

    block_size: int | None
    tokens: int
    steps: int
    mask_share: float | None
    micro_batch: ModelInput
    heaviest: ModelInput

    @property
    def model_tokens(self) -> int:
        """Return the tokens of one forward, [noisy | clean] and padding counted."""
        return self.micro_batch.token_BN.numel()

    @property
    def scored_rows(self) -> int:
        """Return the rows of one forward that meet the head."""
        return scored_rows(self.micro_batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a run computes.

    Attributes:
        stages: in order.
        fill: share of row positions that hold a token.
        measured_fill: whether `fill` was measured on the run's data, or is assumed.
        rows_per_step: packed rows of an optimiser step.
        tokens_per_step: training tokens of an optimiser step, on average.
    """

    stages: tuple[StageWork, ...]
    fill: float
    measured_fill: bool
    rows_per_step: int
    tokens_per_step: float

    @property
    def steps(self) -> int:
        """Return the optimiser steps of the run."""
        return sum(stage.steps for stage in self.stages)


def plain_rows(length: int, *, rows: int, fill: float, paired: bool = False) -> Batch:
    """Return rows of one document each, `fill` of the row long, all of it trainable; ids are zeros.

    With `paired` a row is a preference pair, each answer half as long.
    """
    position_BL = torch.arange(length).expand(rows, length).clone()
    used = max(round(fill * length), 2)
    half = used // 2 if paired else length
    real_BL, second_BL = position_BL < used, position_BL >= half
    return Batch(
        token_BL=torch.zeros_like(position_BL),
        document_BL=torch.where(real_BL, second_BL.long(), PADDING),
        position_BL=torch.where(real_BL, position_BL - half * second_BL.long(), 0),
        trainable_BL=real_BL,
        row_B=torch.arange(rows),
        epoch_B=torch.zeros(rows, dtype=torch.int64),
        paired=paired,
    )


def workload_of(
    config: TrainConfig,
    parametrisation: Parametrisation,
    *,
    mask_id: int,
    rows: PackedRows | None = None,
    fill: float = 1.0,
) -> Workload:
    """Return what a run computes.

    Args:
        config: the run.
        parametrisation: of its checkpoint.
        mask_id: of its checkpoint; any id where there is none.
        rows: the run's packed rows, if they are at hand; None: rows of one document each.
        fill: share of row positions that hold a token, without `rows`.
    """
    if rows is not None:
        fill = rows.counts.fill_rate
    per_step = config.rows_per_batch * config.accumulation
    tokens_per_step = per_step * config.data.row_length * fill
    objective = objective_of(config, parametrisation)
    sampled = min(max(SAMPLED_TOKENS // config.data.row_length, FEWEST_ROWS), MOST_ROWS)
    stages, done = [], 0
    for stage in curriculum_of(config).stages:
        chosen = at_block_size(objective, config, stage.block_size, tokens=config.total_tokens)
        batches = [_rows(config, rows, fill, start) for start in range(0, sampled, config.rows_per_batch)]
        inputs = [chosen.prepare(each, mask_id=mask_id, noise=RowNoise(config.seed)) for each in batches]
        ordered = sorted(inputs, key=scored_rows)
        # A stage's first step begins with the first step boundary at or after the stage's start.
        first, last = math.ceil(done / tokens_per_step), math.ceil((done + stage.tokens) / tokens_per_step)
        done += stage.tokens
        stages.append(
            StageWork(
                block_size=stage.block_size,
                tokens=stage.tokens,
                steps=last - first,
                mask_share=_mask_share(inputs),
                micro_batch=ordered[len(ordered) // 2],
                heaviest=ordered[-1],
            )
        )
    return Workload(
        stages=tuple(stages),
        fill=fill,
        measured_fill=rows is not None,
        rows_per_step=per_step,
        tokens_per_step=tokens_per_step,
    )


def _rows(config: TrainConfig, rows: PackedRows | None, fill: float, start: int) -> Batch:
    wanted = range(start, start + config.rows_per_batch)
    if rows is not None:
        return rows.batch([index % len(rows) for index in wanted])
    return replace(
        plain_rows(
            config.data.row_length,
            rows=config.rows_per_batch,
            fill=fill,
            paired=isinstance(config.objective, PreferenceConfig),
        ),
        row_B=torch.tensor(list(wanted)),
    )


def _mask_share(inputs: list[ModelInput]) -> float | None:
    maskable = sum(int(each.maskable_BW.sum()) for each in inputs if each.maskable_BW is not None)
    return sum(int(each.masked_BN.sum()) for each in inputs) / maskable if maskable else None


def scored_rows(inputs: ModelInput) -> int:
    """Return the rows of a micro-batch that meet the head."""
    return sum(term.row_M.numel() for term in inputs.terms if term.scores_of is None)
