"""Rows laid out on demand."""

from __future__ import annotations

import numpy as np
import pytest

from difflm.data import TokenDocument, pack
from difflm.data.rows import PackOptions
from difflm.errors import ConfigError

EOS = 1


def test_rows_know_where_they_were_filled() -> None:
    documents = [TokenDocument(token=[*range(10, 9 + n), EOS], num_prompt=1, is_answer=True) for n in (5, 3, 4)]
    rows = pack(documents, row_length=12, pad_id=0, eos_id=EOS, fill_multiple=4, packing="greedy")
    assert np.flatnonzero(rows.fill_of(0)).tolist() == [5, 6, 7, 11]
    assert not rows.fill_of(1).any()
    assert (rows.batch([0]).token_BL[0].numpy()[rows.fill_of(0)] == EOS).all()


def test_epochs_and_numbers_of_rows_reach_the_batch() -> None:
    rows = pack([TokenDocument(token=[2, EOS])] * 5, row_length=2, pad_id=0, eos_id=EOS)
    batch = rows.batch([4, 1], [7, 3])
    assert (batch.row_B.tolist(), batch.epoch_B.tolist()) == ([4, 1], [7, 3])
    assert rows.batch([4]).epoch_B.tolist() == [0]


def test_options_check_the_lengths() -> None:
    with pytest.raises(ConfigError, match="row_length: 10 is not a multiple of 4"):
        PackOptions(row_length=10, pad_id=0, eos_id=1, fill_multiple=4)
