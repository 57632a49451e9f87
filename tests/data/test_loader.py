"""The order of rows: a function of (seed, epoch), resumable, indifferent to the batch size."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.data import Draw, Loader, LoaderState, RowOrder
from difflm.errors import DataError


def draw_one_by_one(loader: Loader, count: int) -> list[tuple[int, int]]:
    found = []
    for _ in range(count):
        (epoch,), (row,) = loader.next(1)
        found.append((epoch, row))
    return found


def pairs(draw: Draw) -> list[tuple[int, int]]:
    return list(zip(draw.epoch_B, draw.row_B, strict=True))


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_epoch_draws_every_row_once(shuffle: bool) -> None:
    loader = Loader(RowOrder(num_rows=7, seed=1, shuffle=shuffle))
    drawn = draw_one_by_one(loader, 21)
    for epoch in range(3):
        assert sorted(row for e, row in drawn if e == epoch) == list(range(7))
    assert [epoch for epoch, _ in drawn] == sorted(epoch for epoch, _ in drawn)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    order = RowOrder(num_rows=50, seed=3)
    assert order.epoch(2) == RowOrder(num_rows=50, seed=3).epoch(2)
    others = [order.epoch(3), RowOrder(num_rows=50, seed=4).epoch(2), RowOrder(num_rows=50, seed=2).epoch(3)]
    assert all(order.epoch(2) != other for other in others)
    assert order.epoch(0) != tuple(range(50))
    assert RowOrder(num_rows=50, shuffle=False).epoch(5) == tuple(range(50))


@given(
    st.integers(1, 9),
    st.lists(st.integers(1, 12), min_size=1, max_size=8),
    st.integers(0, 8),
    st.integers(0, 3),
)
@settings(max_examples=80)
def test_resuming_anywhere_changes_nothing(num_rows: int, sizes: list[int], cut: int, seed: int) -> None:
    """N draws equal k draws, a new loader from the state, and N - k draws; and all equal single draws."""
    order = RowOrder(num_rows=num_rows, seed=seed)
    whole, first = Loader(order), Loader(order)
    expected = [whole.next(size) for size in sizes]
    cut = min(cut, len(sizes))
    drawn = [first.next(size) for size in sizes[:cut]]
    second = Loader(RowOrder(num_rows=num_rows, seed=seed), first.state)
    drawn += [second.next(size) for size in sizes[cut:]]
    assert drawn == expected
    assert second.state == whole.state
    assert draw_one_by_one(Loader(order), sum(sizes)) == [pair for draw in expected for pair in pairs(draw)]


def test_a_draw_may_cross_epochs() -> None:
    draw = Loader(RowOrder(num_rows=2, shuffle=False)).next(5)
    assert draw == Draw(epoch_B=(0, 0, 1, 1, 2), row_B=(0, 1, 0, 1, 0))


def test_state_is_two_counters() -> None:
    loader = Loader(RowOrder(num_rows=3))
    assert loader.state == LoaderState(epoch=0, position=0)
    loader.next(3)
    assert loader.state == LoaderState(epoch=1, position=0)
    loader.next(2)
    assert loader.state == LoaderState(epoch=1, position=2)


@pytest.mark.parametrize("state", [LoaderState(position=3), LoaderState(position=-1), LoaderState(epoch=-1)])
def test_a_state_of_other_data_is_refused(state: LoaderState) -> None:
    with pytest.raises(DataError, match=r"does not exist in data of 3 rows"):
        Loader(RowOrder(num_rows=3), state)


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="0 rows"):
        RowOrder(num_rows=0)
