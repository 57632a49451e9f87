"""Eqs. 3 and 4 against loops written from the equations."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from difflm.diffusion.masks import block_numbers, block_starts, document_positions, layout_mask, materialise
from difflm.types import Layout
from tests.rows import batch_of


def loop_mask(layout: Layout) -> Tensor:
    """Transcribe the table of `paper.md` 2.2 cell by cell."""
    rows, length = layout.document_BL.shape
    size = 2 * length if layout.two_streams else length
    out = torch.zeros(rows, 1, size, size, dtype=torch.bool)
    for row, query, key in itertools.product(range(rows), range(size), range(size)):
        i, j = query % length, key % length
        if layout.document_BL[row, i] != layout.document_BL[row, j]:
            continue
        bi, bj = int(layout.block_BL[row, i]), int(layout.block_BL[row, j])
        near = layout.lookahead is None or j <= i + layout.lookahead
        own = bi == bj and near and (j <= i or not layout.causal_inside)
        if not layout.two_streams:
            seen = bj < bi or own
        elif query < length and key < length:
            seen = own
        elif query < length:
            seen = bj < bi
        elif key < length:
            seen = False
        else:
            seen = j <= i if layout.clean_causal else bj < bi or (bj == bi and near)
        out[row, 0, query, key] = seen
    return out


@pytest.mark.parametrize(
    ("two", "inside", "clean", "origin", "ahead"),
    list(itertools.product((False, True), (False, True), (False, True), ("document", "row"), (None, 0, 2))),
)
def test_predicate_equals_the_loop(two: bool, inside: bool, clean: bool, origin: str, ahead: int | None) -> None:
    batch = batch_of([[7, 4], [1, 9, 2]], row_length=13)
    block = block_numbers(batch.position_BL, block_size=4, origin=origin)  # type: ignore[arg-type]
    layout = Layout(
        document_BL=batch.document_BL,
        block_BL=block,
        two_streams=two,
        causal_inside=inside,
        clean_causal=clean,
        lookahead=ahead,
    )
    size = 26 if two else 13
    assert torch.equal(materialise(layout_mask(layout), 2, size), loop_mask(layout))


def test_windows_see_the_clean_row_up_to_their_anchor_and_themselves() -> None:
    document = torch.tensor([[0, 0, 0, 1, 1, 1, -1]])
    anchor = torch.tensor([[-1, 1, 1, 4, 4]])  # a window behind token 1 of document 0, one behind token 1 of document 1
    layout = Layout(
        document_BL=document,
        block_BL=document_positions(document),
        two_streams=True,
        clean_causal=True,
        anchor_BW=anchor,
    )
    seen = materialise(layout_mask(layout), 1, 12)[0, 0].int().tolist()
    #                 noisy windows   | document 0, document 1, padding
    assert seen[0] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert seen[1] == seen[2] == [0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    assert seen[3] == seen[4] == [0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0]
    assert seen[7] == [0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0]
    assert seen[10] == [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0]
    assert seen[11] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    causal = materialise(layout_mask(replace(layout, causal_inside=True)), 1, 12)[0, 0].int().tolist()
    assert causal[3] == [0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0]
    assert causal[4] == seen[4]
    assert causal[7] == seen[7]


def test_positions_and_blocks_restart_in_each_document() -> None:
    document = torch.tensor([[0, 0, 0, 1, 1, -1, -1]])
    position = document_positions(document)
    assert position.tolist() == [[0, 1, 2, 0, 1, 0, 0]]
    assert block_numbers(position, block_size=2).tolist() == [[0, 0, 1, 0, 0, 0, 0]]
    assert block_numbers(position, block_size=2, origin="row").tolist() == [[0, 0, 1, 1, 2, 2, 3]]
    starts = block_starts(document, block_numbers(position, block_size=2))
    assert starts.tolist() == [[True, False, True, True, False, True, False]]


def test_a_document_id_may_return_later_in_the_row() -> None:
    assert document_positions(torch.tensor([[3, 3, 1, 3, 3]])).tolist() == [[0, 1, 0, 0, 1]]


def test_annealing_widens_the_view_from_causal_to_the_whole_block() -> None:
    batch = batch_of([[7, 4]], row_length=11)
    block = block_numbers(batch.position_BL, block_size=4)

    def seen(ahead: int | None, *, causal: bool = False) -> Tensor:
        layout = Layout(
            document_BL=batch.document_BL,
            block_BL=block,
            two_streams=True,
            causal_inside=causal,
            clean_causal=causal,
            lookahead=ahead,
        )
        return materialise(layout_mask(layout), 1, 22)

    assert torch.equal(seen(0), seen(None, causal=True))
    assert torch.equal(seen(3), seen(None))
    steps = [seen(ahead) for ahead in range(4)]
    for narrow, wide in itertools.pairwise(steps):
        assert bool((wide | ~narrow).all())
        assert int(wide.sum()) > int(narrow.sum())
