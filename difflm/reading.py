"""Scores of the rows that are read, with no others forwarded: many masks of few texts behind long prompts.

Clean rows never see noisy ones. So the clean stream, up to the last block with something to score, is forwarded once
for all rows of a batch that have it in common, and of the noisy stream only the blocks with something to score. The
values are those of `difflm.scoring.score_input`, but for rounding.

Shape legend: see `difflm.types`; U different clean streams of C rows, W noisy rows of each batch row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from difflm.diffusion.masks import block_starts, layout_mask
from difflm.diffusion.scores import score_tokens
from difflm.models.attention import AttentionChoice, DenseAttention, attention_for
from difflm.models.streams import Behind, Recorded, clean_layout
from difflm.models.transformer import Transformer
from difflm.types import PADDING, Layout, ModelInput, TokenScores


def score_read(model: Transformer, inputs: ModelInput, *, backend: AttentionChoice = "auto") -> TokenScores:
    """Return the scores of the only term of an input of two streams, as `difflm.scoring.score_input` does.

    Args:
        model: any dtype and device.
        inputs: of `BlockDiffusion.given`.
        backend: of the clean stream's attention.
    """
    [term] = inputs.terms
    rows, weight = _rows_read(inputs), model.embedding.weight
    length, width = inputs.layout.document_BL.shape[1], rows.clean.document_BL.shape[1]
    own_UC = slice(length, length + width)
    token_BN, position_BN = inputs.token_BN.to(weight.device), inputs.position_BN.to(weight.device)
    first_U, text_B, column_BW = (each.to(weight.device) for each in (rows.first_U, rows.text_B, rows.column_BW))
    attend = attention_for(
        clean_layout(rows.clean),
        heads_per_group=model.config.num_heads // model.config.num_kv_heads,
        dtype=weight.dtype,
        device=weight.device,
        backend=backend,
        head_dim=model.config.head_dim,
    )
    clean = Recorded(attend)
    clean_UCD = model(token_BN[first_U, own_UC], position_BN[first_U, own_UC], clean)
    for layer, (key, value) in clean.kept.items():
        clean.kept[layer] = (key[text_B], value[text_B])
    noisy_BWD = model(
        token_BN.gather(1, column_BW),
        position_BN.gather(1, column_BW),
        Behind(DenseAttention(rows.mask_B1WK.to(weight.device)), clean),
        adapter=True if model.adapter_gate == "noisy" else None,
    )
    flat_RD = torch.cat([clean_UCD.flatten(0, 1), noisy_BWD.flatten(0, 1)])
    return score_tokens(
        flat_RD[rows.place_P[term.row_M.cpu()].to(weight.device)],
        model.head.weight,
        term.target_M.to(weight.device),
        rows=model.head_rows(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _RowsRead:
    """Which rows go through the model.

    Attributes:
        clean: the different clean streams, cut behind the last row that any noisy row sees; PADDING where none does.
        first_U: batch row that each of them is taken from.
        text_B: which of them each batch row has.
        column_BW: noisy rows, as columns of the input; 0 where a batch row has fewer.
        mask_B1WK: bool, which of the noisy, then the clean rows they see.
        place_P: where each row of the input [B * N] is among clean and noisy rows, flattened; -1 where it is neither.
    """

    clean: Layout
    first_U: Tensor
    text_B: Tensor
    column_BW: Tensor
    mask_B1WK: Tensor
    place_P: Tensor


def _rows_read(inputs: ModelInput) -> _RowsRead:
    layout = inputs.layout
    assert layout.two_streams, "a single stream has no clean rows to share"
    document_BL, block_BL = layout.document_BL, layout.block_BL
    rows, length = document_BL.shape
    unit_BL = block_starts(document_BL, block_BL).long().cumsum(1) - 1
    scored_BL = torch.zeros(rows * length, dtype=torch.bool)
    scored_BL[inputs.terms[0].place_M.cpu()] = True
    needed_BU = torch.zeros(rows, length, dtype=torch.bool)
    row_M, place_M = scored_BL.view(rows, length).nonzero(as_tuple=True)
    needed_BU[row_M, unit_BL[row_M, place_M]] = True
    noisy_BL = needed_BU.gather(1, unit_BL)
    # No row sees the clean rows of its own block, so those of the last one are seen by none.
    last_B1 = unit_BL.where(noisy_BL, -1).amax(1, keepdim=True)
    seen_BL = unit_BL < last_B1
    width = max(1, int(seen_BL.sum(1).max()))
    token_BC = inputs.token_BN[:, length : length + width].cpu().where(seen_BL[:, :width], 0)
    document_BC = document_BL[:, :width].where(seen_BL[:, :width], PADDING)
    _, text_B = torch.unique(torch.cat([token_BC, document_BC], dim=1), dim=0, return_inverse=True)
    first_U = torch.full((int(text_B.max()) + 1,), rows).scatter_reduce(0, text_B, torch.arange(rows), "amin")
    clean = Layout(
        document_BL=document_BC[first_U],
        block_BL=block_BL[first_U, :width],
        two_streams=True,
        clean_causal=layout.clean_causal,
    )
    column_BW, real_BW = _columns(noisy_BL)
    place_BN = torch.full((rows, 2 * length), -1)
    place_BN[:, length : length + width] = text_B[:, None] * width + torch.arange(width)
    slot_BW = len(first_U) * width + torch.arange(column_BW.numel()).view_as(column_BW)
    row_R, slot_R = real_BW.nonzero(as_tuple=True)
    place_BN[row_R, column_BW[row_R, slot_R]] = slot_BW[row_R, slot_R]
    return _RowsRead(
        clean=clean,
        first_U=first_U,
        text_B=text_B,
        column_BW=column_BW,
        mask_B1WK=_mask(layout, column_BW, real_BW, width),
        place_P=place_BN.flatten(),
    )


def _columns(noisy_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Return (columns that are True in each row, padded with 0, int64 [B, W]; bool, those that are no padding)."""
    width = int(noisy_BL.sum(1).max())
    order_BL = (~noisy_BL).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
    real_BW = torch.arange(width) < noisy_BL.sum(1, keepdim=True)
    return order_BL.where(real_BW, 0), real_BW


def _mask(layout: Layout, column_BW: Tensor, real_BW: Tensor, width: int) -> Tensor:
    """Return who sees whom, bool [B, 1, W, W + C]; padding sees itself, so that no row is empty."""
    rows, count = column_BW.shape
    length = layout.document_BL.shape[1]
    key_BK = torch.cat([column_BW, torch.arange(length, length + width).expand(rows, width)], dim=1)
    row = torch.arange(rows)[:, None, None, None]
    head = torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    seen_B1WK = layout_mask(layout)(row, head, column_BW[:, None, :, None], key_BK[:, None, None, :])
    real_BK = torch.cat([real_BW, torch.ones(rows, width, dtype=torch.bool)], dim=1)
    itself_WK = torch.eye(count, count + width, dtype=torch.bool)
    return torch.where(real_BW[:, None, :, None], seen_B1WK & real_BK[:, None, None, :], itself_WK)
