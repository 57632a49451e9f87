"""Which items share a row: against slow references, and the row counts of a stream."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.data.fitting import FillMeter, best_fit, best_fit_rows, grouped, next_fit, next_fit_rows

lengths_of_12 = st.lists(st.integers(1, 12), min_size=1, max_size=60)


def slow_best_fit(lengths: list[int], row_length: int) -> list[list[int]]:
    """Best fit decreasing by looking at every row; ties go to the row that reached its fill first."""
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (free tokens, time of last use)
    for time, item in enumerate(sorted(range(len(lengths)), key=lambda index: -lengths[index])):
        fitting = [(room, used, row) for row, (room, used) in enumerate(rooms) if room >= lengths[item]]
        if fitting:
            row = min(fitting)[2]
        else:
            row = len(rows)
            rows.append([])
            rooms.append((row_length, time))
        rows[row].append(item)
        rooms[row] = (rooms[row][0] - lengths[item], time)
    return sorted(sorted(row) for row in rows)


@given(lengths_of_12)
@settings(max_examples=80)
def test_best_fit_equals_the_slow_one(lengths: list[int]) -> None:
    assert best_fit(lengths, row_length=12) == slow_best_fit(lengths, 12)


def test_next_fit_keeps_the_order_and_looks_at_one_row() -> None:
    # 2 would fit into the first row, but that row is closed once 7 did not.
    assert next_fit([5, 7, 2, 8], row_length=8) == [[0], [1], [2], [3]]
    assert next_fit([5, 3, 1, 7], row_length=8) == [[0, 1], [2, 3]]


@given(lengths_of_12)
@settings(max_examples=60)
def test_the_meter_counts_the_rows_that_packing_makes(lengths: list[int]) -> None:
    meter = FillMeter(12)
    for length in lengths:
        meter.add(length)
    assert meter.greedy_rows == len(next_fit(lengths, row_length=12))
    assert meter.best_fit_rows() == len(best_fit(lengths, row_length=12))
    assert meter.tokens == sum(lengths)


def test_a_drawn_room_is_never_less_than_the_first_item() -> None:
    def rooms() -> Iterator[int]:
        yield from (2, 6, 8, 8)

    draws = rooms()
    assert next_fit_rows([3, 1, 4, 2, 1], row_length=8, capacity=lambda: next(draws)) == [0, 1, 1, 2, 2]
    draws = rooms()
    assert best_fit_rows([3, 1, 4, 2, 1], row_length=8, capacity=lambda: next(draws)) == [1, 1, 0, 1, 2]


def test_no_items_are_no_rows() -> None:
    assert grouped([]) == []
