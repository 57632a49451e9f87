"""Which items share a row: best fit decreasing, next fit in order, and how many rows either would take.

Pure arithmetic on lengths; `packing.py` turns documents into items and items into rows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Capacity = Callable[[], int]
"""Room of the next row that is opened, in tokens."""


def best_fit(lengths: Sequence[int], *, row_length: int) -> list[list[int]]:
    """Return rows of item indices by best fit decreasing: longest first, each into the fullest row it fits.

    Deterministic: equal lengths in order of index, equally full rows in order of their last use. Rows are
    ordered by their smallest index, and so are the items of a row. O(n log n) for n items.

    Args:
        lengths: item lengths in tokens, each in [1, row_length].
        row_length: capacity of a row in tokens.
    """
    return grouped(best_fit_rows(lengths, row_length=row_length))


def next_fit(lengths: Sequence[int], *, row_length: int) -> list[list[int]]:
    """Return rows of item indices in order: an item joins the current row if it fits, and begins the next if not.

    Args:
        lengths: item lengths in tokens, each in [1, row_length].
        row_length: capacity of a row in tokens.
    """
    return grouped(next_fit_rows(lengths, row_length=row_length))


def best_fit_rows(lengths: Sequence[int], *, row_length: int, capacity: Capacity | None = None) -> list[int]:
    """Return the number of each item's row by best fit decreasing, rows numbered in the order they were opened.

    Args:
        lengths: item lengths in tokens, each in [1, row_length].
        row_length: capacity of a row in tokens.
        capacity: room of each row as it is opened; it is never less than its first item. None: `row_length`.
    """
    assert all(0 < length <= row_length for length in lengths), "every item has to fit into a row"
    row_of = [0] * len(lengths)
    num_rows = 0
    open_rows: dict[int, deque[int]] = {}  # free tokens -> rows with exactly that much room
    rooms: list[int] = []  # the keys of open_rows, sorted
    for item in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        place = bisect_left(rooms, lengths[item])
        if place == len(rooms):
            row, room = num_rows, max(capacity(), lengths[item]) if capacity else row_length
            num_rows += 1
        else:
            room = rooms[place]
            row = open_rows[room].popleft()
            if not open_rows[room]:
                del open_rows[room], rooms[place]
        row_of[item] = row
        room -= lengths[item]
        if room and room not in open_rows:
            insort(rooms, room)
        if room:
            open_rows.setdefault(room, deque()).append(row)
    return row_of


def next_fit_rows(lengths: Sequence[int], *, row_length: int, capacity: Capacity | None = None) -> list[int]:
    """Return the number of each item's row when items are taken in order and only the last row is open.

    Args:
        lengths: item lengths in tokens, each in [1, row_length].
        row_length: capacity of a row in tokens.
        capacity: room of each row as it is opened; it is never less than its first item. None: `row_length`.
    """
    assert all(0 < length <= row_length for length in lengths), "every item has to fit into a row"
    row_of: list[int] = []
    row, room = -1, 0
    for length in lengths:
        if length > room:
            row += 1
            room = max(capacity(), length) if capacity else row_length
        room -= length
        row_of.append(row)
    return row_of


def grouped(row_of: Sequence[int]) -> list[list[int]]:
    """Return the items of each row, rows ordered by their smallest item, items ascending."""
    order, start = row_table(row_of)
    return [order[begin:end].tolist() for begin, end in pairwise(start.tolist())]


def row_table(row_of: Sequence[int] | NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (items in the order of rows, where each row begins in it and the end), ordered as in `grouped`."""
    row = np.asarray(row_of, dtype=np.int64)
    if not len(row):
        return row, np.zeros(1, dtype=np.int64)
    order = np.argsort(row, kind="stable")
    begin = np.flatnonzero(np.diff(row[order], prepend=-1))
    size = np.diff(begin, append=len(row))
    first = np.argsort(order[begin], kind="stable")  # rows by their smallest item
    start = np.concatenate([[0], np.cumsum(size[first])])
    within = np.arange(len(row)) - np.repeat(start[:-1], size[first])
    return order[np.repeat(begin[first], size[first]) + within], start


class FillMeter:
    """Counts the rows of both packings from a stream of lengths, in memory that does not grow with it.

    Best fit decreasing depends on the lengths alone, not on their order, so a histogram of them is enough.

    Args:
        row_length: capacity of a row in tokens.
    """

    def __init__(self, row_length: int) -> None:
        self.row_length = row_length
        self.tokens = 0
        self.greedy_rows = 0
        self._room = 0
        self._histogram = [0] * (row_length + 1)

    def add(self, length: int) -> None:
        """Take in an item of `length` tokens, in [1, row_length]."""
        self.tokens += length
        self._histogram[length] += 1
        if length > self._room:
            self.greedy_rows += 1
            self._room = self.row_length
        self._room -= length

    def best_fit_rows(self) -> int:
        """Return how many rows best fit decreasing makes of the items so far."""
        rows = 0
        free: dict[int, int] = {}  # room -> rows with exactly that much
        rooms: list[int] = []  # the keys of free, sorted
        for length in range(self.row_length, 0, -1):
            left = self._histogram[length]
            while left:
                place = bisect_left(rooms, length)
                if place < len(rooms):
                    room = rooms.pop(place)
                    count = free.pop(room)
                else:
                    room, count = self.row_length, -(-left // (self.row_length // length))
                    rows += count
                each = room // length  # a row that took one is the fullest that fits, and takes the next as well
                full = min(count, left // each)
                rest = left - full * each if full < count else 0
                left -= full * each + rest
                untouched = count - full - (1 if rest else 0)
                _put(free, rooms, room - each * length, full)
                _put(free, rooms, room - rest * length, int(rest > 0))
                _put(free, rooms, room, untouched)
        return rows


def _put(free: dict[int, int], rooms: list[int], room: int, count: int) -> None:
    if room and count:
        if room not in free:
            insort(rooms, room)
        free[room] = free.get(room, 0) + count
