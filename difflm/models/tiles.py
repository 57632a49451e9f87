"""A layout cut into tiles: the rows that share an attention call of the exact split (`difflm.models.attention`).

Shape legend: see `difflm.types`; T rows of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difflm.models.ranges import KeyRanges, key_ranges, ranges_mask
from difflm.types import PADDING, Layout

TILE = 128
"""Tokens of a tile: measured best on CPU for rows of 512 to 4096 tokens (64 ties, 256 and more lose)."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Queries that share a clean prefix.

    Attributes:
        row: row of the batch.
        rows_T: slices of the model row that form the tile: [noisy part, clean part] or [part].
        queries_T: those of them that ask: all, or the noisy part alone.
        prefix: slice of the model row whose keys all queries of the tile see (may be empty).
        mask_TT: bool, visibility inside the tile, queries by rows; None = everything.
    """

    row: int
    rows_T: tuple[slice, ...]
    queries_T: tuple[slice, ...]
    prefix: slice
    mask_TT: Tensor | None


@dataclass(frozen=True, slots=True)
class Span:
    """The places of a tile in a row of tokens.

    Attributes:
        prefix: start of the clean prefix, which ends at `start`.
        start, stop: tokens of the tile.
        noisy: its rows of the noisy stream; empty in a single stream, or where none stands on the tile.
    """

    prefix: int
    start: int
    stop: int
    noisy: slice

    @property
    def num_noisy(self) -> int:
        """Return the noisy rows of the tile."""
        return self.noisy.stop - self.noisy.start


def split_tiles(layout: Layout, *, tile: int = TILE, noisy_only: bool = False) -> list[Tile]:
    """Cut every row of a layout into tiles of whole blocks, about `tile` tokens each; padding belongs to none.

    A block longer than `tile` is a tile of its own. Short documents share a tile; a tile that begins inside a
    document holds only that document (its prefix is visible to all queries of the tile). A window belongs to the tile
    of its anchor, a noisy block, in all its views, to that of its places.

    Args:
        layout: attention structure.
        tile: tokens of a tile.
        noisy_only: the queries are the noisy rows alone; tiles without any are left out.
    """
    tiles: list[Tile] = []
    offset = layout.noisy_length
    ranges = key_ranges(layout, noisy_only=noisy_only).to("cpu")
    for row, spans in enumerate(layout_spans(layout, tile=tile)):
        for span in spans:
            clean = slice(offset + span.start, offset + span.stop)
            rows_T = (span.noisy, clean) if span.num_noisy else (clean,)
            queries_T = rows_T[:1] if noisy_only else rows_T
            if noisy_only and not span.num_noisy:
                continue
            prefix = slice(offset + span.prefix, offset + span.start)
            tiles.append(Tile(row, rows_T, queries_T, prefix, _tile_mask(ranges, row, queries_T, rows_T)))
    return tiles


def layout_spans(layout: Layout, *, tile: int = TILE) -> Iterator[list[Span]]:
    """Yield the spans of the tiles of each row, in order."""
    document_BL, block_BL = layout.document_BL.tolist(), layout.block_BL.tolist()
    stand_BW = layout.stand_BW
    if stand_BW is None:
        for document, block in zip(document_BL, block_BL, strict=True):
            spans = tile_spans(document, block, tile)
            none = slice(0, 0)
            yield [Span(*each, slice(*each[1:]) if layout.two_streams else none) for each in spans]
        return
    # As many rows in a tile as with a noisy row for each token.
    length = layout.document_BL.shape[1]
    size = max(tile * 2 * length // (length + layout.noisy_length), 1)
    for document, block, stand_W in zip(document_BL, block_BL, stand_BW.cpu(), strict=True):
        row = []
        for prefix, start, stop in tile_spans(document, range(length) if layout.anchor_BW is not None else block, size):
            # Counted, as the places of a block stand there once a view; padding is below every start.
            first, end = (int((stand_W < place).sum()) for place in (start, stop))
            row.append(Span(prefix, start, stop, slice(first, end)))
        yield row


def tile_spans(document: Sequence[int], block: Sequence[int], tile: int) -> list[tuple[int, int, int]]:
    """Return (start of the prefix, start, stop) of each tile of a row."""
    spans: list[tuple[int, int, int]] = []
    open_span: tuple[int, int, int] | None = None
    document_start, begin, length = 0, 0, len(document)
    while begin < length:
        end = begin + 1
        while end < length and document[end] == document[begin] and block[end] == block[begin]:
            end += 1
        new_document = begin == 0 or document[begin] != document[begin - 1]
        document_start = begin if new_document else document_start
        if open_span is not None:
            prefix, start, _ = open_span
            shares = not new_document or prefix == start
            if document[begin] != PADDING and shares and end - start <= tile:
                open_span = (prefix, start, end)
                begin = end
                continue
            spans.append(open_span)
            open_span = None
        if document[begin] != PADDING:
            open_span = (document_start, begin, end)
        begin = end
    return [*spans, open_span] if open_span is not None else spans


def _tile_mask(ranges: KeyRanges, row: int, queries_T: tuple[slice, ...], rows_T: tuple[slice, ...]) -> Tensor | None:
    """Return which queries see which rows of a tile: bool [queries, T]; None if all see all."""
    query, key = (torch.cat([torch.arange(span.start, span.stop) for span in part]) for part in (queries_T, rows_T))
    mask_TT = ranges_mask(ranges)(torch.tensor(row), torch.tensor(0), query[:, None], key[None])
    return None if bool(mask_TT.all()) else mask_TT
