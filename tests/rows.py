"""Rows, models and layouts shared by tests of the maths, the model and the trainer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from difflm.diffusion.masks import document_positions
from difflm.types import Batch

VOCAB = 13
MASK = 12


def batch_of(
    lengths: Sequence[Sequence[int]], *, row_length: int, prompts: Sequence[Sequence[int]] | None = None, seed: int = 0
) -> Batch:
    """Return random rows with documents of the given lengths (rest padding) and prompts of the given lengths."""
    rows = len(lengths)
    document = torch.full((rows, row_length), -1)
    trainable = torch.zeros(rows, row_length, dtype=torch.bool)
    for row, sizes in enumerate(lengths):
        start = 0
        for number, size in enumerate(sizes):
            given = prompts[row][number] if prompts else 0
            document[row, start : start + size] = number
            trainable[row, start + given : start + size] = True
            start += size
    generator = torch.Generator().manual_seed(seed)
    token = torch.randint(0, MASK, (rows, row_length), generator=generator)
    return Batch(
        token_BL=token,
        document_BL=document,
        position_BL=document_positions(document),
        trainable_BL=trainable,
        row_B=torch.arange(rows),
        epoch_B=torch.zeros(rows, dtype=torch.int64),
    )
