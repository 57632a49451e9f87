"""Spans never overlap, lie inside, and one is found wherever a gap is large enough."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from difflm.decode.slots import Spans


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=40))
def test_spans_against_a_map_of_cells(steps: list[tuple[bool, int]]) -> None:
    spans, cell = Spans(24), [False] * 24
    for take, number in steps:
        if take:
            gaps = [i for i in range(24 - number + 1) if not any(cell[i : i + number])]
            found = spans.reserve(number)
            assert found == (gaps[0] if gaps else None)
            if found is not None:
                cell[found : found + number] = [True] * number
        elif spans.taken:
            start = sorted(spans.taken)[number % len(spans.taken)]
            cell[start : start + spans.taken[start]] = [False] * spans.taken[start]
            spans.release(start)
        assert spans.used == sum(cell)
