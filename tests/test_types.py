"""Batches: selection, restriction, counting."""

import torch

from tests.rows import batch_of


def test_take_repeats_rows_and_where_restricts_training() -> None:
    batch = batch_of([[4, 2], [5]], row_length=7)
    assert batch.num_tokens() == 11
    twice = batch.take(torch.tensor([1, 1, 0]))
    assert twice.row_B.tolist() == [1, 1, 0]
    assert torch.equal(twice.token_BL[0], batch.token_BL[1])
    kept = batch.where(torch.tensor([False, True]))
    assert not bool(kept.trainable_BL[0].any())
    assert torch.equal(kept.trainable_BL[1], batch.trainable_BL[1])
    assert torch.equal(kept.token_BL, batch.token_BL)
