"""Sizes of tiles against the tiles themselves."""

from __future__ import annotations

import pytest

from difflm.estimate.tiles import tile_shapes
from difflm.models.tiles import split_tiles
from tests.estimate.test_memory import micro_batch
from tests.models.windows import window_layout


@pytest.mark.parametrize("block_size", [1, 8, 160, None])
def test_shapes_are_those_of_the_tiles(block_size: int | None) -> None:
    layout = micro_batch(block_size).layout
    expected = [
        (
            sum(part.stop - part.start for part in tile.rows_T),
            tile.prefix.stop - tile.prefix.start,
            tile.mask_TT is not None,
        )
        for tile in split_tiles(layout)
    ]
    assert list(tile_shapes(layout)) == expected


def test_shapes_of_windows_are_those_of_the_tiles() -> None:
    layout = window_layout([[90, 170], [300]], width=250, size=7, padding=3)
    expected = [
        (sum(part.stop - part.start for part in tile.rows_T), tile.prefix.stop - tile.prefix.start)
        for tile in split_tiles(layout)
    ]
    assert [shape[:2] for shape in tile_shapes(layout)] == expected
