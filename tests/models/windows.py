"""Layouts of windows and of views for tests."""

from __future__ import annotations

import torch

from difflm.diffusion.masks import block_numbers
from difflm.diffusion.shared import shared_places
from difflm.types import PADDING, Layout
from tests.rows import batch_of


def window_layout(
    sizes: list[list[int]], *, width: int, size: int, causal: bool = False, padding: int = 0, seed: int = 0
) -> Layout:
    """Return windows of up to `size` rows at random anchors, `width` noisy rows a row with the padding."""
    batch = batch_of(sizes, row_length=max(map(sum, sizes)) + padding)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for document_L in batch.document_BL:
        places = (document_L >= 0).nonzero()[:, 0]
        anchors = places[torch.randperm(len(places), generator=generator)][: max(width // (size + 1), 1)].sort().values
        lengths = torch.randint(1, size + 1, anchors.shape, generator=generator)
        row = anchors.repeat_interleave(lengths)[:width]
        rows.append(torch.nn.functional.pad(row, (width - len(row), 0), value=PADDING))
    return Layout(
        document_BL=batch.document_BL,
        block_BL=batch.position_BL,
        two_streams=True,
        causal_inside=causal,
        clean_causal=True,
        anchor_BW=torch.stack(rows),
    )


def view_layout(
    sizes: list[list[int]],
    *,
    block_size: int,
    views: int,
    causal: bool = False,
    clean_causal: bool = False,
    lookahead: int | None = None,
    padding: int = 0,
    seed: int = 0,
) -> Layout:
    """Return random blocks of the rows in up to `views` views of each."""
    batch = batch_of(sizes, row_length=max(map(sum, sizes)) + padding)
    block_BL = block_numbers(batch.position_BL, block_size=block_size)
    index_R = torch.arange(len(sizes)).repeat_interleave(views)
    generator = torch.Generator().manual_seed(seed)
    counted_RL = batch.trainable_BL[index_R]
    counted_RL = counted_RL & (torch.rand(counted_RL.shape, generator=generator) < 0.2)
    place_BW, view_BW = shared_places(batch, block_BL, index_R, counted_RL)
    return Layout(
        document_BL=batch.document_BL,
        block_BL=block_BL,
        two_streams=True,
        causal_inside=causal,
        clean_causal=clean_causal,
        lookahead=lookahead,
        place_BW=place_BW,
        view_BW=view_BW,
    )
