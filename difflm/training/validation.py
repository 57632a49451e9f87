"""Validation: perplexity from the fixed-noise NELBO at fixed block sizes, and the AR perplexity of the same weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from difflm.data.packing import PackedRows
from difflm.diffusion.noise import RowNoise
from difflm.diffusion.objectives import BlockDiffusion, NextToken, Objective
from difflm.diffusion.windows import Drafting
from difflm.likelihood import measure
from difflm.models.attention import AttentionChoice
from difflm.models.transformer import Transformer
from difflm.training.drafts import DraftTally
from difflm.training.tally import NelboTally
from difflm.types import PADDING, Parametrisation


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexities:
    """Perplexity per token: exp of the mean negative log-likelihood bound over text tokens plus one EOS per document.

    Attributes:
        nelbo: block size -> exp(NELBO), an upper bound estimated with one fixed draw of exact-count noise (exact
            at block size 1).
        autoregressive: exp(next-token loss) of a plain causal forward; None if it was not measured. The first
            token of a document is predicted by no row and is not counted.
        by_mask_rate: block size -> bucket of mask rates -> NELBO of the blocks in it, nats per token (see
            `NelboTally`).
        drafts: of a drafting run: agreement of drafts by place and tokens per cycle (`DraftTally`); `nelbo` then has
            the one window, masked, and is exact: exp of the mean negative log-likelihood of its drafts.
    """

    nelbo: dict[int, float]
    autoregressive: float | None = None
    by_mask_rate: dict[int, dict[str, float]] = field(default_factory=dict)
    drafts: dict[str, Any] | None = None

    def as_metrics(self) -> dict[str, Any]:
        """Return the figures in the form of metrics.jsonl."""
        return {
            "perplexity": {str(size): value for size, value in self.nelbo.items()},
            "ar_perplexity": self.autoregressive,
            "loss_by_block_size": {str(size): math.log(value) for size, value in self.nelbo.items()},
            "nelbo_by_mask_rate": {str(size): rates for size, rates in self.by_mask_rate.items()},
            **({} if self.drafts is None else {"drafts": self.drafts}),
        }


@torch.no_grad()
def perplexity(
    model: Transformer,
    rows: PackedRows,
    objective: Objective,
    *,
    mask_id: int | None,
    noise: RowNoise,
    num_rows: int,
    rows_per_batch: int,
    draws: int = 1,
    backend: AttentionChoice = "auto",
    drafts: DraftTally | None = None,
) -> tuple[float, dict[str, float]]:
    """Return exp(loss) of the objective's first term over the first rows, and the loss by mask rate.

    Both are sums over a counted normaliser; an objective without masks has no loss by mask rate. `drafts` counts what
    agrees with the clean rows.
    """
    total, count, tally = 0.0, 0.0, NelboTally()
    for draw in range(draws):
        for start in range(0, num_rows, rows_per_batch):
            indices = range(start, min(start + rows_per_batch, num_rows))
            batch = rows.batch(indices, [draw] * len(indices))
            if batch.paired:  # of a pair, what is preferred
                chosen_BL = batch.pairs().chosen_BL != PADDING
                batch = replace(batch, trainable_BL=batch.trainable_BL & chosen_BL)
            inputs = objective.prepare(batch, mask_id=mask_id, noise=noise)
            scores, total_B = measure(model, inputs, backend=backend)
            tally.add(inputs, scores[0])
            if drafts is not None:
                drafts.add(inputs, scores[0])
            total += float(total_B.sum())
            count += float(inputs.terms[0].count)
    return math.exp(min(total / max(count, 1.0), 700.0)), tally.rates.means()


def validate(
    model: Transformer,
    rows: PackedRows,
    *,
    block_sizes: Sequence[int],
    parametrisation: Parametrisation,
    mask_id: int | None,
    seed: int,
    num_rows: int = 0,
    rows_per_batch: int = 4,
    draws: int = 1,
    autoregressive: bool = True,
    backend: AttentionChoice = "auto",
    drafting: Drafting | None = None,
) -> Perplexities:
    """Measure the perplexities of a model on validation rows; no noise on embeddings, raw logits.

    Args:
        model: in any dtype.
        rows: packed validation rows.
        block_sizes: block sizes of the NELBO, tokens; ignored without a mask token (an AR model).
        parametrisation: of the checkpoint.
        mask_id: the mask token.
        seed: of the fixed noise.
        num_rows: rows used, the first ones; 0 = all.
        rows_per_batch: rows of one forward.
        draws: noise draws per row.
        autoregressive: measure the AR perplexity too.
        backend: of the attention.
        drafting: objective of a drafting run; `block_sizes` then is its window alone.
    """
    measured = partial(
        perplexity,
        model,
        rows,
        mask_id=mask_id,
        noise=RowNoise(seed),
        num_rows=min(num_rows or len(rows), len(rows)),
        rows_per_batch=rows_per_batch,
        backend=backend,
    )
    nelbo, by_rate = dict[int, float](), dict[int, dict[str, float]]()
    drafts: DraftTally | None = None
    if drafting is not None:
        [window] = block_sizes
        drafting = replace(drafting, window=window, noise="masked", draft_loss="kl", ar_weight=0.0)
        drafts = DraftTally(drafting)
    for size in block_sizes if mask_id is not None else ():
        objective = drafting or BlockDiffusion(block_size=size, parametrisation=parametrisation)
        # Block size 1 masks everything: there is nothing to average over.
        repeats = 1 if size == 1 else draws
        nelbo[size], by_rate[size] = measured(objective, draws=repeats, drafts=drafts)
    causal = measured(NextToken())[0] if autoregressive else None
    figures = None if drafts is None else drafts.row()
    return Perplexities(nelbo=nelbo, autoregressive=causal, by_mask_rate=by_rate, drafts=figures)
