"""Sizes of the tiles of split attention, without their masks."""

from __future__ import annotations

from collections.abc import Iterator

from difflm.models.attention import TILE, tile_spans
from difflm.types import Layout


def tile_shapes(layout: Layout) -> Iterator[tuple[int, int, bool]]:
    """Yield (query rows, rows of the clean prefix, whether a mask is needed) of every tile of `split_tiles`.

    Args:
        layout: attention structure of a batch.
    """
    streams = 2 if layout.two_streams else 1
    for document, block in zip(layout.document_BL.tolist(), layout.block_BL.tolist(), strict=True):
        for prefix, start, stop in tile_spans(document, block, TILE):
            # Everything is visible only inside one block of one document in a single stream.
            whole = document[start] == document[stop - 1] and block[start] == block[stop - 1]
            masked = streams == 2 or (layout.causal_inside and stop - start > 1) or not whole
            yield streams * (stop - start), start - prefix, masked
