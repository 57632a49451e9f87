"""Rows at which targets are read: with and without shift, in every layout of blocks."""

from __future__ import annotations

import torch

from difflm.diffusion.loss_rows import next_token_rows, prediction_rows, scorable
from difflm.types import Layout, Parametrisation
from tests.rows import batch_of


def test_shifted_targets_are_read_one_row_before_in_the_same_view() -> None:
    batch = batch_of([[8]], row_length=8)
    layout = Layout(
        document_BL=batch.document_BL,
        block_BL=batch.position_BL // 4,
        two_streams=True,
        place_BW=torch.tensor([[-1, 4, 5, 6, 7, 4, 5, 6, 7]]),
        view_BW=torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 1]]),
    )
    row, column = torch.zeros(4, dtype=torch.int64), torch.tensor([1, 2, 5, 8])
    assert prediction_rows(layout, row, column, shift=False).tolist() == [1, 2, 5, 8]
    # The first place of a block is read at the clean row before it, in every view.
    assert prediction_rows(layout, row, column, shift=True).tolist() == [9 + 3, 1, 9 + 3, 7]


def test_a_first_token_is_scorable_without_shift_only() -> None:
    batch = batch_of([[3, 2]], row_length=6)
    assert int(scorable(batch, Parametrisation()).sum()) == 5
    assert int(scorable(batch, Parametrisation(logit_shift=True)).sum()) == 3
    assert next_token_rows(batch, offset=6, row_length=12).row_M.tolist() == [6, 7, 9]
