"""A layout as ranges of keys: which model rows each query sees, as data. FlexAttention and the dense form read it.

Whatever a layout allows is, for one query, at most two contiguous ranges of model rows: the clean rows before its
block or window, and rows of its own (for a clean query: one range from the start of its document). Block size,
documents, causal options and a narrowed view are therefore numbers in four integer tensors, never code: a mask function
over them is the same function for every block size of a curriculum, and nothing is compiled anew.

Shape legend: see `difflm.types`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from difflm.types import PADDING, Layout, MaskMod


@dataclass(frozen=True, slots=True)
class KeyRanges:
    """Model rows that each query sees: own_start <= key < own_stop, or before_start <= key < before_stop.

    Attributes:
        own_start_BN, own_stop_BN: int32, never empty: a query sees itself.
        before_start_BN, before_stop_BN: int32, clean rows of earlier blocks (of a window: up to its anchor) for a noisy
            query; empty otherwise.
        num_keys: model rows that can be seen, N; the queries may be the first of them only (`first`).
    """

    own_start_BN: Tensor
    own_stop_BN: Tensor
    before_start_BN: Tensor
    before_stop_BN: Tensor
    num_keys: int

    def to(self, device: torch.device | str) -> KeyRanges:
        """Return the ranges on a device."""
        return KeyRanges(
            self.own_start_BN.to(device),
            self.own_stop_BN.to(device),
            self.before_start_BN.to(device),
            self.before_stop_BN.to(device),
            self.num_keys,
        )

    def first(self, count: int) -> KeyRanges:
        """Return the ranges of the first `count` queries; they see the same keys."""
        return KeyRanges(
            self.own_start_BN[:, :count],
            self.own_stop_BN[:, :count],
            self.before_start_BN[:, :count],
            self.before_stop_BN[:, :count],
            self.num_keys,
        )


def _runs(document_BL: Tensor, block_BL: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return start and stop of the run of each position: of one document, or of one block of it; int64 [B, L]."""
    length = document_BL.shape[1]
    index_L = torch.arange(length, device=document_BL.device)
    first_BL = torch.ones_like(document_BL, dtype=torch.bool)
    first_BL[:, 1:] = document_BL[:, 1:] != document_BL[:, :-1]
    if block_BL is not None:
        first_BL[:, 1:] |= block_BL[:, 1:] != block_BL[:, :-1]
    start_BL = torch.where(first_BL, index_L, 0).cummax(dim=1).values
    last_BL = torch.ones_like(first_BL)
    last_BL[:, :-1] = first_BL[:, 1:]
    stop_BL = torch.where(last_BL, index_L + 1, length).flip(1).cummin(dim=1).values.flip(1)
    return start_BL, stop_BL


def key_ranges(layout: Layout, *, noisy_only: bool = False) -> KeyRanges:
    """Return the ranges of a layout, int32 [B, N], on the layout's device.

    Equal to the predicate `difflm.diffusion.masks.layout_mask` for every real token; padding sees its own run only.

    Args:
        layout: attention structure; documents are contiguous runs, blocks contiguous runs inside a document.
        noisy_only: of the noisy queries alone, [B, noisy rows]; the keys are still all model rows.
    """
    if noisy_only:
        return key_ranges(layout).first(layout.noisy_length)
    if layout.anchor_BW is not None:
        return _window_ranges(layout, layout.anchor_BW)
    if layout.place_BW is not None and layout.view_BW is not None:
        return _view_ranges(layout, layout.place_BW, layout.view_BW)
    length = layout.document_BL.shape[1]
    document_start, _ = _runs(layout.document_BL, None)
    block_start, block_stop = _runs(layout.document_BL, layout.block_BL)
    after_L = torch.arange(1, length + 1, device=block_stop.device)
    near_stop = block_stop if layout.lookahead is None else torch.minimum(block_stop, after_L + layout.lookahead)
    view_stop = torch.minimum(block_stop, after_L) if layout.causal_inside else near_stop
    if not layout.two_streams:
        none = torch.zeros_like(view_stop)
        return KeyRanges(document_start.int(), view_stop.int(), none.int(), none.int(), length)
    clean_stop = after_L.expand_as(block_stop) if layout.clean_causal else near_stop
    # An empty range must stay empty after the offset; [offset + start, offset + start) is.
    none = torch.zeros_like(block_start)
    return KeyRanges(
        torch.cat([block_start, length + document_start], dim=1).int(),
        torch.cat([view_stop, length + clean_stop], dim=1).int(),
        torch.cat([length + document_start, none], dim=1).int(),
        torch.cat([length + block_start, none], dim=1).int(),
        2 * length,
    )


def _window_ranges(layout: Layout, anchor_BW: Tensor) -> KeyRanges:
    """Return the ranges of [windows | clean], the clean stream token-causal."""
    length, width = layout.document_BL.shape[1], anchor_BW.shape[1]
    document_start, _ = _runs(layout.document_BL, None)
    start, stop = _runs(anchor_BW, None)
    after_N = torch.arange(1, width + length + 1, device=anchor_BW.device)
    if layout.causal_inside:
        stop = torch.minimum(stop, after_N[:width])
    real, seed = anchor_BW != PADDING, anchor_BW.clamp(min=0)
    none = torch.zeros_like(document_start)
    return KeyRanges(
        torch.cat([start, width + document_start], dim=1).int(),
        torch.cat([stop, after_N[width:].expand_as(document_start)], dim=1).int(),
        torch.cat([torch.where(real, width + document_start.gather(1, seed), 0), none], dim=1).int(),
        torch.cat([torch.where(real, width + seed + 1, 0), none], dim=1).int(),
        width + length,
    )


def _view_ranges(layout: Layout, place_BW: Tensor, view_BW: Tensor) -> KeyRanges:
    """Return the ranges of [views of blocks | clean]."""
    width = place_BW.shape[1]
    # The clean stream as it stands in [noisy | clean].
    plain = key_ranges(replace(layout, place_BW=None, view_BW=None))
    length = layout.document_BL.shape[1]
    clean_start, clean_stop = (each[:, length:] - length for each in (plain.own_start_BN, plain.own_stop_BN))
    document_start, _ = _runs(layout.document_BL, None)
    block_start, _ = _runs(layout.document_BL, layout.block_BL)
    real, seat = place_BW != PADDING, place_BW.clamp(min=0)
    # Block and view as one number; padding has one of its own.
    run_BW = torch.where(real, block_start.gather(1, seat) * (int(view_BW.max()) + 1) + view_BW, PADDING)
    start, stop = _runs(run_BW, None)
    after_W = torch.arange(1, width + 1, device=place_BW.device)
    if layout.causal_inside:
        stop = torch.minimum(stop, after_W)
    elif layout.lookahead is not None:
        stop = torch.minimum(stop, after_W + layout.lookahead)
    none = torch.zeros_like(clean_start)
    before_start, before_stop = (width + each.gather(1, seat) for each in (document_start, block_start))
    return KeyRanges(
        torch.cat([start, width + clean_start], dim=1).int(),
        torch.cat([stop, width + clean_stop], dim=1).int(),
        torch.cat([torch.where(real, before_start, 0), none], dim=1).int(),
        torch.cat([torch.where(real, before_stop, 0), none], dim=1).int(),
        width + length,
    )


def ranges_mask(ranges: KeyRanges) -> MaskMod:
    """Return the predicate of the ranges: (row, head, query, key) -> may the query see the key."""
    own_start, own_stop = ranges.own_start_BN, ranges.own_stop_BN
    before_start, before_stop = ranges.before_start_BN, ranges.before_stop_BN

    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (key >= own_start[row, query]) & (key < own_stop[row, query])
        before = (key >= before_start[row, query]) & (key < before_stop[row, query])
        return own | before

    return seen


def dense_mask(ranges: KeyRanges) -> Tensor:
    """Return the ranges as one boolean mask, [B, 1, queries, N], True = visible; O(N^2) memory."""
    rows, queries = ranges.own_start_BN.shape
    index = torch.arange(max(rows, ranges.num_keys), device=ranges.own_start_BN.device)
    row, query, key = index[:rows, None, None], index[None, :queries, None], index[None, None, : ranges.num_keys]
    return ranges_mask(ranges)(row, row, query, key)[:, None]
