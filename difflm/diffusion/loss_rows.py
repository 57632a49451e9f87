"""Which rows of a model's output predict which token, for every objective.

Shape legend: see `difflm.types`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from difflm.diffusion.masks import noisy_starts
from difflm.types import Batch, Layout, LossRows, ModelInput, Parametrisation, TokenScores


def weighted_sums(scores: tuple[TokenScores, ...], inputs: ModelInput) -> tuple[Tensor, ...]:
    """Return sum(weight * negative log-likelihood) of each loss term, float32 scalars in nats."""
    return tuple(
        (term.weight_M.to(score.nll_M.device) * score.nll_M).sum()
        for score, term in zip(scores, inputs.terms, strict=True)
    )


def next_token_rows(batch: Batch, *, offset: int, row_length: int, scale: float = 1.0) -> LossRows:
    """Return the next-token term: row i predicts token i+1 of the same document where that token is trainable.

    Args:
        batch: packed rows.
        offset: where the causal stream starts inside a model row (L for the clean half of two streams, else 0).
        row_length: N, model rows per batch row.
        scale: coefficient in the total loss.
    """
    wanted_BL = batch.trainable_BL.clone()
    wanted_BL[:, 0] = False
    wanted_BL[:, 1:] &= batch.document_BL[:, 1:] == batch.document_BL[:, :-1]
    row, place = wanted_BL.nonzero(as_tuple=True)
    target = batch.token_BL[row, place]
    return LossRows(
        name="ar",
        row_M=row * row_length + offset + place - 1,
        target_M=target,
        weight_M=torch.ones(target.shape[0], device=target.device),
        place_M=row * batch.token_BL.shape[1] + place,
        count=torch.tensor(float(target.shape[0]), dtype=torch.float64),
        scale=scale,
    )


def scorable(batch: Batch, parametrisation: Parametrisation) -> Tensor:
    """Return the trainable positions that the model can predict, bool [B, L].

    With a logit shift the first token of a document has no row before it and is never masked nor scored.
    """
    if parametrisation.logit_shift:
        return batch.trainable_BL & (batch.position_BL > 0)
    return batch.trainable_BL


def prediction_rows(layout: Layout, row_M: Tensor, column_M: Tensor, *, shift: bool) -> Tensor:
    """Return the flattened model row at which each target is read.

    Without shift: the target's own noisy row. With shift: the noisy row before it; for the first position of a block
    the *clean* row before it (when decoding: the output of the prefill or commit). A single stream has no clean rows,
    and there the first position of a block is the first of a document, or its noisy predecessor serves.

    Args:
        layout: of blocks.
        row_M: row of the batch.
        column_M: noisy row of the target; in a single stream and in [noisy | clean] its place.
        shift: the model's logit shift.
    """
    noisy = layout.noisy_length
    first_M = row_M * (noisy + layout.document_BL.shape[1])
    if not shift:
        return first_M + column_M
    place_M = column_M if layout.place_BW is None else layout.place_BW[row_M, column_M]
    assert bool((place_M > 0).all()), "the first token of a row has no predecessor"
    source = first_M + column_M - 1
    if not layout.two_streams:
        return source
    return torch.where(noisy_starts(layout)[row_M, column_M], first_M + noisy + place_M - 1, source)
