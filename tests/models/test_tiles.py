"""Tiles are small, cover every token once, and hold the windows of their tokens."""

from __future__ import annotations

import torch

from difflm.models.tiles import split_tiles
from tests.models.test_attention import layout_of
from tests.models.windows import view_layout, window_layout


def test_tiles_are_small_and_cover_every_real_token_once() -> None:
    layout = layout_of(
        [[300, 40, 30], [5] * 60], row_length=400, block_size=4, two=True, inside=False, clean=False, origin="document"
    )
    tiles = split_tiles(layout, tile=128)
    covered = torch.zeros(2, 800, dtype=torch.int64)
    for tile in tiles:
        assert tile.rows_T[0].stop - tile.rows_T[0].start <= 128
        for span in tile.rows_T:
            covered[tile.row, span] += 1
    assert torch.equal(covered, (layout.document_BL >= 0).long().repeat(1, 2))
    assert any(tile.prefix.stop > tile.prefix.start for tile in tiles)


def test_windows_stand_on_the_tile_of_their_anchor() -> None:
    layout = window_layout([[300, 40], [200, 90]], width=500, size=8, padding=3)
    assert layout.anchor_BW is not None
    every, noisy = split_tiles(layout, tile=64), split_tiles(layout, tile=64, noisy_only=True)
    covered, asked = torch.zeros(2, 843, dtype=torch.int64), torch.zeros(2, 500, dtype=torch.int64)
    for tile in every:
        assert tile.queries_T == tile.rows_T
        assert sum(part.stop - part.start for part in tile.rows_T) < 4 * 64
        for part in tile.rows_T:
            covered[tile.row, part] += 1
        clean = tile.rows_T[-1]
        for part in tile.rows_T[:-1]:
            anchor = layout.anchor_BW[tile.row, part] + 500
            assert bool(((anchor >= clean.start) & (anchor < clean.stop)).all())
    real = torch.cat([layout.anchor_BW, layout.document_BL], dim=1) >= 0
    assert torch.equal(covered, real.long())
    for tile in noisy:
        (part,) = tile.queries_T
        asked[tile.row, part] += 1
    assert torch.equal(asked, (layout.anchor_BW >= 0).long())


def test_views_stand_on_the_tile_of_their_places() -> None:
    layout = view_layout([[300, 40], [200, 90]], block_size=8, views=2, padding=3)
    assert layout.place_BW is not None
    width = layout.noisy_length
    covered = torch.zeros(2, width + 343, dtype=torch.int64)
    for tile in split_tiles(layout, tile=64):
        for part in tile.rows_T:
            covered[tile.row, part] += 1
        clean = tile.rows_T[-1]
        for part in tile.rows_T[:-1]:
            place = layout.place_BW[tile.row, part] + width
            assert bool(((place >= clean.start) & (place < clean.stop)).all())
    assert torch.equal(covered, (torch.cat([layout.place_BW, layout.document_BL], dim=1) >= 0).long())
