"""Who may see whom: Eqs. 3 and 4 as one predicate over documents and blocks.

The predicate is the reference; the fast attention paths are built from the same `Layout` and tested against it.

Shape legend: see `difflm.types`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from difflm.types import PADDING, BlockOrigin, Layout, MaskMod


def document_positions(document_BL: Tensor) -> Tensor:
    """Return positions that restart at 0 in each contiguous run of a document, int64 [B, L]; 0 on padding."""
    length = document_BL.shape[1]
    index_L = torch.arange(length, device=document_BL.device)
    start_BL = torch.ones_like(document_BL, dtype=torch.bool)
    start_BL[:, 1:] = document_BL[:, 1:] != document_BL[:, :-1]
    first_BL = torch.where(start_BL, index_L, 0).cummax(dim=1).values
    return torch.where(document_BL == PADDING, 0, index_L - first_BL)


def block_numbers(position_BL: Tensor, *, block_size: int, origin: BlockOrigin = "document") -> Tensor:
    """Return the block number of every position, int64 [B, L].

    Args:
        position_BL: positions that restart in each document.
        block_size: S, tokens.
        origin: "document": blocks restart in each document, as decoding sees it (default; the report does not
            say which index its Eq. 3 uses on packed rows). "row": the printed equation, blocks of the whole row;
            one that straddles two documents is cut by the document condition.
    """
    if origin == "document":
        return position_BL // block_size
    return (torch.arange(position_BL.shape[1], device=position_BL.device) // block_size).expand_as(position_BL)


def block_starts(document_BL: Tensor, block_BL: Tensor) -> Tensor:
    """Return bool [B, L], True on the first position of each block of each document."""
    start_BL = torch.ones_like(document_BL, dtype=torch.bool)
    start_BL[:, 1:] = (document_BL[:, 1:] != document_BL[:, :-1]) | (block_BL[:, 1:] != block_BL[:, :-1])
    return start_BL


def noisy_starts(layout: Layout) -> Tensor:
    """Return bool [B, W], True on the first noisy row of each block, in each view of it; W = L in a single stream."""
    if layout.place_BW is None or layout.view_BW is None:
        assert layout.anchor_BW is None, "windows are no blocks"
        return block_starts(layout.document_BL, layout.block_BL)
    seat_BW = layout.place_BW.clamp(min=0)
    document_BW = layout.document_BL.gather(1, seat_BW).where(layout.place_BW != PADDING, PADDING)
    start_BW = block_starts(document_BW, layout.block_BL.gather(1, seat_BW))
    start_BW[:, 1:] |= layout.view_BW[:, 1:] != layout.view_BW[:, :-1]
    return start_BW


def layout_mask(layout: Layout) -> MaskMod:
    """Return the predicate of a layout: (row, head, query, key) -> may the query see the key.

    With b(.) the block number, d(.) the document and L the row length, for two streams [noisy | clean]:

        query   key     allowed iff d(q) == d(k) and
        noisy   noisy   b(q) == b(k)            (and k <= q with `causal_inside`)
        noisy   clean   b(q) >  b(k)
        clean   clean   b(q) >= b(k)            (k <= q with `clean_causal`)
        clean   noisy   never

    and for a single stream: b(q) > b(k), or b(q) == b(k) (and k <= q with `causal_inside`). One block per
    document makes that Eq. 4 (MDLM); blocks of one token, or `causal_inside`, make it next-token attention.
    With `lookahead` n, k <= q + n as well wherever b(q) == b(k) (both streams).

    Where the noisy stream is windows (`anchor_BW`), a(.) the anchor of a noisy row:

        noisy   noisy   a(q) == a(k)            (and k <= q with `causal_inside`)
        noisy   clean   a(q) >= k and d(a(q)) == d(k)
        clean   clean   k <= q   and d(q) == d(k)

    For some blocks of the row in several views (`place_BW`, `view_BW`) it is the table of two streams, with the places
    in q and k, and between noisy rows of one view only.

    Source: LLaDA2.0 (arXiv:2512.15745) Eqs. 3-4; `clean_causal` and `causal_inside` are deviations that the
    checkpoint records.
    """
    if layout.anchor_BW is not None:
        return _windows_mask(layout, layout.anchor_BW)
    if layout.place_BW is not None and layout.view_BW is not None:
        return _views_mask(layout, layout.place_BW, layout.view_BW)
    document_BL, block_BL = layout.document_BL, layout.block_BL
    length = document_BL.shape[1]

    ahead = length if layout.lookahead is None else layout.lookahead

    def inside(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = block_BL[row, query] == block_BL[row, key]
        return same & (key - query <= (0 if layout.causal_inside else ahead))

    def single(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        earlier = block_BL[row, query] > block_BL[row, key]
        return (document_BL[row, query] == document_BL[row, key]) & (earlier | inside(row, query, key))

    def double(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        noisy_query, noisy_key = query < length, key < length
        query, key = query % length, key % length
        document = document_BL[row, query] == document_BL[row, key]
        difference = block_BL[row, query] - block_BL[row, key]
        near = (difference == 0) & (key - query <= ahead)
        clean = key <= query if layout.clean_causal else (difference > 0) | near
        seen_noisy = noisy_query & inside(row, query, key)
        seen_clean = torch.where(noisy_query, difference > 0, clean)
        return document & torch.where(noisy_key, seen_noisy, seen_clean)

    return double if layout.two_streams else single


def _windows_mask(layout: Layout, anchor_BW: Tensor) -> MaskMod:
    document_BL, width = layout.document_BL, anchor_BW.shape[1]

    def windows(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # Indices of the other stream are clamped into the tensor; the choice below leaves their values out.
        anchor_q, anchor_k = (anchor_BW[row, each.clamp(max=width - 1)] for each in (query, key))
        last = torch.where(query < width, anchor_q, query - width)
        place = (key - width).clamp(min=0)
        real = last >= 0
        same = document_BL[row, last.clamp(min=0)] == document_BL[row, place]
        own = (anchor_q == anchor_k) & (key <= query) if layout.causal_inside else anchor_q == anchor_k
        return torch.where(key < width, (query < width) & own, real & same & (place <= last))

    return windows


def _views_mask(layout: Layout, place_BW: Tensor, view_BW: Tensor) -> MaskMod:
    document_BL, block_BL, width = layout.document_BL, layout.block_BL, place_BW.shape[1]
    ahead = document_BL.shape[1] if layout.lookahead is None else layout.lookahead

    def views(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # Indices of the other stream are clamped into the tensor; the choice below leaves their values out.
        noisy_q, noisy_k = query.clamp(max=width - 1), key.clamp(max=width - 1)
        place_q = torch.where(query < width, place_BW[row, noisy_q], query - width)
        place_k = torch.where(key < width, place_BW[row, noisy_k], key - width)
        real = (place_q >= 0) & (place_k >= 0)
        q, k = place_q.clamp(min=0), place_k.clamp(min=0)
        document = real & (document_BL[row, q] == document_BL[row, k])
        difference = block_BL[row, q] - block_BL[row, k]
        mates = document & (difference == 0) & (view_BW[row, noisy_q] == view_BW[row, noisy_k])
        both_padding = (place_q < 0) & (place_k < 0)
        own = (mates | both_padding) & (key - query <= (0 if layout.causal_inside else ahead))
        clean = key <= query if layout.clean_causal else (difference > 0) | ((difference == 0) & (key - query <= ahead))
        seen = document & torch.where(query < width, difference > 0, clean)
        return torch.where(key < width, (query < width) & own, seen)

    return views


def materialise(mask_mod: MaskMod, rows: int, length: int, *, device: str | torch.device = "cpu") -> Tensor:
    """Evaluate a predicate everywhere: bool [B, 1, N, N], True = visible. The dense reference; O(N^2) memory."""
    row = torch.arange(rows, device=device)[:, None, None, None]
    head = torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=device)
    query = torch.arange(length, device=device)[None, None, :, None]
    key = torch.arange(length, device=device)[None, None, None, :]
    return mask_mod(row, head, query, key).expand(rows, 1, length, length)
