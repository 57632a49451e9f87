"""Key ranges say what the predicate of a layout says, for every real token; padding is never left without a key."""

from __future__ import annotations

import itertools

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from difflm.diffusion.masks import block_numbers, layout_mask, materialise
from difflm.models.ranges import dense_mask, key_ranges, ranges_mask
from difflm.types import BlockOrigin, Layout
from tests.models.windows import view_layout, window_layout
from tests.rows import batch_of

ORIGINS: tuple[BlockOrigin, ...] = ("document", "row")


def layouts(sizes: list[list[int]], *, padding: int, block_size: int, lookahead: int | None = None) -> list[Layout]:
    """Return every layout over rows of the given documents: both streams, all causal options, both origins."""
    batch = batch_of(sizes, row_length=max(map(sum, sizes)) + padding)
    return [
        Layout(
            document_BL=batch.document_BL,
            block_BL=block_numbers(batch.position_BL, block_size=block_size, origin=origin),
            two_streams=two,
            causal_inside=inside,
            clean_causal=clean,
            lookahead=lookahead,
        )
        for two, inside, clean in itertools.product((False, True), repeat=3)
        for origin in ORIGINS
    ]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 17), min_size=1, max_size=4), min_size=1, max_size=3),
    padding=st.integers(0, 9),
    block_size=st.integers(1, 40),
    lookahead=st.none() | st.integers(0, 9),
)
def test_ranges_equal_the_predicate(
    sizes: list[list[int]], padding: int, block_size: int, lookahead: int | None
) -> None:
    for layout in layouts(sizes, padding=padding, block_size=block_size, lookahead=lookahead):
        rows, length = layout.document_BL.shape
        streams = 1 + layout.two_streams
        expected = materialise(layout_mask(layout), rows, streams * length)
        found = dense_mask(key_ranges(layout))
        real = (layout.document_BL >= 0).repeat(1, streams)
        assert torch.equal(found[:, 0][real], expected[:, 0][real])
        assert bool(found.any(-1).all())  # padding too: an empty row would be NaN


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 17), min_size=1, max_size=4), min_size=1, max_size=3),
    padding=st.integers(0, 5),
    width=st.integers(1, 40),
    size=st.integers(1, 6),
    causal=st.booleans(),
)
def test_ranges_of_windows_equal_the_predicate(
    sizes: list[list[int]], padding: int, width: int, size: int, causal: bool
) -> None:
    layout = window_layout(sizes, width=width, size=size, causal=causal, padding=padding)
    rows, length = layout.document_BL.shape
    expected = materialise(layout_mask(layout), rows, width + length)
    assert torch.equal(dense_mask(key_ranges(layout)), expected)
    assert torch.equal(dense_mask(key_ranges(layout, noisy_only=True)), expected[:, :, :width])
    assert bool(expected.any(-1).all())


@settings(max_examples=40, deadline=None)
@example(sizes=[[1], [3]], padding=1, block_size=3, views=3, causal=False, clean_causal=False, lookahead=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 17), min_size=1, max_size=4), min_size=1, max_size=3),
    padding=st.integers(0, 5),
    block_size=st.integers(1, 9),
    views=st.integers(1, 3),
    causal=st.booleans(),
    clean_causal=st.booleans(),
    lookahead=st.none() | st.integers(0, 5),
)
def test_ranges_of_views_equal_the_predicate(
    sizes: list[list[int]],
    padding: int,
    block_size: int,
    views: int,
    causal: bool,
    clean_causal: bool,
    lookahead: int | None,
) -> None:
    layout = view_layout(
        sizes,
        block_size=block_size,
        views=views,
        causal=causal,
        clean_causal=clean_causal,
        lookahead=lookahead,
        padding=padding,
    )
    rows, length = layout.document_BL.shape
    width = layout.noisy_length
    expected = materialise(layout_mask(layout), rows, width + length)
    assert layout.place_BW is not None
    # What padding sees does not matter, as long as it sees something.
    real = torch.cat([layout.place_BW >= 0, layout.document_BL >= 0], dim=1)
    found = dense_mask(key_ranges(layout))
    assert torch.equal(found[:, 0][real], expected[:, 0][real])
    assert torch.equal(dense_mask(key_ranges(layout, noisy_only=True)), found[:, :, :width])
    assert bool(found.any(-1).all())


def test_padding_in_the_middle_of_a_row_is_not_seen() -> None:
    document = torch.tensor([[0, 0, -1, -1, 1, 1]])
    layout = Layout(document_BL=document, block_BL=torch.zeros_like(document))
    mask = dense_mask(key_ranges(layout))[0, 0]
    assert torch.equal(mask, document[0][:, None] == document[0][None])


def test_ranges_are_data_of_one_shape_for_every_block_size() -> None:
    batch = batch_of([[9, 7]], row_length=20)
    fields = []
    for size in (1, 4, 20):
        layout = Layout(
            document_BL=batch.document_BL, block_BL=block_numbers(batch.position_BL, block_size=size), two_streams=True
        )
        ranges = key_ranges(layout)
        assert {each.dtype for each in (ranges.own_start_BN, ranges.before_stop_BN)} == {torch.int32}
        fields.append(ranges)
        index = torch.arange(40)
        seen = ranges_mask(ranges)(torch.tensor(0), torch.tensor(0), index[:, None], index[None])
        assert torch.equal(seen, dense_mask(ranges)[0, 0])
    assert len({each.own_stop_BN.shape for each in fields}) == 1
    assert not torch.equal(fields[0].own_stop_BN, fields[1].own_stop_BN)


def test_ranges_move_to_a_device() -> None:
    document = torch.zeros(1, 4, dtype=torch.int64)
    moved = key_ranges(Layout(document_BL=document, block_BL=document)).to("meta")
    assert {each.device.type for each in (moved.own_start_BN, moved.own_stop_BN, moved.before_start_BN)} == {"meta"}
    assert moved.before_stop_BN.device.type == "meta"
