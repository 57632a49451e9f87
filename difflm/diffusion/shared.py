"""Several views of a row before one clean stream, and of each view only the blocks that have something to learn.

Clean rows never see noisy ones, so that one clean stream serves every view: V views of all blocks cost (V + 1) L rows
instead of 2 V L, a complementary pair 3L instead of 4L. Loss and gradients are those of the views one by one.

Shape legend: see `difflm.types`; R views of all rows, those of a row one after another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from difflm.diffusion.masks import block_starts
from difflm.types import PADDING, Batch, Layout

STEPS = 16
"""Noisy streams have a multiple of about L / STEPS rows, so that few shapes occur."""


@dataclass(frozen=True, slots=True)
class RowViews:
    """Masks of the rows of a batch, R views in all, those of a row one after another.

    Attributes:
        index_R: int64, row of the batch that each view is of.
        view_R: int64, number of the view; with `complementary` the odd ones are inverse to those before them.
        masked_RL: bool.
        weight_RL: ELBO weight of each position if masked.
        counted_RL: bool, positions that the view could have masked, for the normaliser.
    """

    index_R: Tensor
    view_R: Tensor
    masked_RL: Tensor
    weight_RL: Tensor
    counted_RL: Tensor


def shared_places(batch: Batch, block_BL: Tensor, index_R: Tensor, counted_RL: Tensor) -> tuple[Tensor, Tensor]:
    """Return (places, rows of R) of the noisy stream of each row, int64 [B, W], PADDING before the first block.

    Args:
        batch: packed rows.
        block_BL: block numbers.
        index_R: row of the batch that each view is of, ascending.
        counted_RL: bool, positions of each view that its loss counts; blocks without any are left out of it.
    """
    rows, length = batch.token_BL.shape
    start_BL = block_starts(batch.document_BL, block_BL)
    first_BL = torch.where(start_BL, torch.arange(length), 0).cummax(dim=1).values
    unit_RL = (start_BL.long().cumsum(1) - 1)[index_R]
    needed_RU = torch.zeros(len(index_R), length, dtype=torch.bool)
    view, place = counted_RL.nonzero(as_tuple=True)
    needed_RU[view, unit_RL[view, place]] = True
    view, place = needed_RU.gather(1, unit_RL).nonzero(as_tuple=True)
    # Rows, then blocks, then views, then places: `nonzero` has sorted by views and places already.
    row = index_R[view]
    order = (row * length + first_BL[row, place]).argsort(stable=True)
    row, view, place = row[order], view[order], place[order]
    used_B = torch.bincount(row, minlength=rows)
    step = -(-length // STEPS)
    width = max(-(-int(used_B.max()) // step) * step, 1)
    column = torch.arange(len(row)) - (used_B.cumsum(0) - used_B)[row] + width - used_B[row]
    place_BW, view_BW = torch.full((rows, width), PADDING), torch.zeros(rows, width, dtype=torch.int64)
    place_BW[row, column], view_BW[row, column] = place, view
    return place_BW, view_BW


def standing(value_RL: Tensor, place_BW: Tensor, view_BW: Tensor, empty: float | bool) -> Tensor:
    """Return the value of each noisy row, [B, W], `empty` at padding.

    Args:
        value_RL: of each position of each view.
        place_BW: of `shared_places`.
        view_BW: of `shared_places`.
        empty: value of padding.
    """
    return torch.where(place_BW == PADDING, empty, value_RL[view_BW, place_BW.clamp(min=0)])


def shared_tokens(layout: Layout, batch: Batch, masked_BW: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    """Return tokens and positions of [views | clean], int64 [B, W + L]; padding is a mask at position 0.

    Args:
        layout: with places.
        batch: packed rows.
        masked_BW: bool, noisy rows that are masked.
        mask_id: the mask token.
    """
    assert layout.place_BW is not None, "a layout of views"
    real_BW, seat_BW = layout.place_BW != PADDING, layout.place_BW.clamp(min=0)
    noisy_BW = torch.where(masked_BW | ~real_BW, mask_id, batch.token_BL.gather(1, seat_BW))
    position_BW = torch.where(real_BW, batch.position_BL.gather(1, seat_BW), 0)
    return torch.cat([noisy_BW, batch.token_BL], dim=1), torch.cat([position_BW, batch.position_BL], dim=1)
