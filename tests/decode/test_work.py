"""Which row of a forward predicts a position, and which token stands before it."""

from __future__ import annotations

import pytest

from difflm.decode.work import Work
from tests.decode.test_runner import request_of


@pytest.mark.parametrize(("shift", "rows"), [(False, [4, 5, 7]), (True, [3, 4, 6])])
def test_rows_of_places(shift: bool, rows: list[int]) -> None:
    tokens = (1, 2, 3, 4, 5, 6, 7, 8)  # a clean block of 4, then a noisy one
    work = Work(request=request_of(logit_shift=shift), kind="denoise", start=8, tokens=tokens, num_clean=4)
    assert [work.row_of(place) for place in (12, 13, 15)] == rows
    assert [work.left_of(place) for place in (12, 13, 15)] == [-1, 5, 7]


@pytest.mark.parametrize(("shift", "rows"), [(False, [0, 1, 2, 4, 5]), (True, [0, 1, 2, 3, 4])])
def test_clean_rows_predict_the_next_place_and_noisy_ones_as_the_model_does(shift: bool, rows: list[int]) -> None:
    request = request_of(logit_shift=True, noisy_shift=shift, block_size=1)
    work = Work(request=request, kind="denoise", start=8, tokens=(1, 2, 3, 9, 9, 9), num_clean=3)
    assert [work.row_of(place) for place in (9, 10, 11, 12, 13)] == rows
