"""Batches: selection, restriction, counting."""

from dataclasses import replace

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


def test_pairs_are_numbered_over_the_rows() -> None:
    batch = replace(batch_of([[2, 1, 1, 1], [], [3, 1]], row_length=6), paired=True)
    pairs = batch.take(torch.tensor([0, 2, 1, 0])).pairs()
    assert pairs.count == 5
    assert pairs.chosen_BL.tolist() == [[0, 0, -1, 1, -1, -1], [2, 2, 2, -1, -1, -1], [-1] * 6, [3, 3, -1, 4, -1, -1]]
    assert pairs.rejected_BL.tolist() == [
        [-1, -1, 0, -1, 1, -1],
        [-1, -1, -1, 2, -1, -1],
        [-1] * 6,
        [-1, -1, 3, -1, 4, -1],
    ]
