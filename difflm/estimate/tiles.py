"""Sizes of the tiles of split attention, without their masks."""

from __future__ import annotations

from collections.abc import Iterator

from difflm.models.tiles import layout_spans
from difflm.types import Layout


def tile_shapes(layout: Layout) -> Iterator[tuple[int, int, bool]]:
    """Yield (query rows, rows of the clean prefix, whether a mask is needed) of every tile of `split_tiles`.

    Args:
        layout: attention structure of a batch.
    """
    documents, blocks = layout.document_BL.tolist(), layout.block_BL.tolist()
    for document, block, spans in zip(documents, blocks, layout_spans(layout), strict=True):
        for span in spans:
            start, stop = span.start, span.stop
            # Everything is visible only inside one block of one document in a single stream.
            whole = document[start] == document[stop - 1] and block[start] == block[stop - 1]
            masked = layout.two_streams or (layout.causal_inside and stop - start > 1) or not whole
            yield stop - start + span.num_noisy, start - span.prefix, masked
