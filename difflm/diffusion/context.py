"""Weights of masked tokens by the context that is visible near them (CART).

Shape legend: see `difflm.types`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from difflm.types import PADDING


def context_weights(document_BL: Tensor, block_BL: Tensor, masked_BL: Tensor, *, p: float) -> Tensor:
    """Return the weight of each position from its visible neighbours, float32 [B, L], in [0, 1].

    w(n) = 1/2 * sum over visible i of p (1 - p)^(|n - i| - 1): each side of a token whose neighbours are all visible
    adds 1/2. What a noisy row sees of its document: every token of earlier blocks (the clean stream), and the unmasked
    tokens of its own block on both sides.

    Args:
        document_BL: int64, PADDING for padding.
        block_BL: int64 block numbers, restarting anywhere, as in `Layout`.
        masked_BL: bool, masked positions.
        p: parameter of the geometric distribution, in (0, 1].

    Source: CART, Dream 7B (arXiv:2508.15487); deviation: visibility is that of block diffusion, and distances beyond
        which the whole rest of the sum is below float32's resolution are left out.
    """
    length = document_BL.shape[1]
    # (1 - p)^d < 2^-26 from here on.
    reach = length if p < 1.0 else 2
    if p < 1.0:
        reach = min(length, 1 + math.ceil(26 * math.log(2) / -math.log1p(-p)))
    total_BL = torch.zeros(document_BL.shape, dtype=torch.float64)
    shown_BL = (~masked_BL & (document_BL != PADDING)).double()
    for distance in range(1, reach):
        share = 0.5 * p * (1.0 - p) ** (distance - 1)
        same = document_BL[:, distance:] == document_BL[:, :-distance]
        inside = same & (block_BL[:, distance:] == block_BL[:, :-distance])
        earlier = (same & ~inside).double()
        # The left neighbour at this distance, then the right one.
        total_BL[:, distance:] += share * (earlier + inside * shown_BL[:, :-distance])
        total_BL[:, :-distance] += share * inside * shown_BL[:, distance:]
    return torch.where(document_BL == PADDING, 0.0, total_BL).float()
