"""The masks under which given tokens are scored: some that are drawn, or all there are.

Both give the same number, the evidence lower bound (ELBO) of Eq. 1 with exact-count masks. In a block with n tokens to
score, k is uniform on 1..n, every set of k tokens is as likely, and a masked token weighs n / k.

Shape legend: see `difflm.types`; N tokens to score, W views of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from difflm.diffusion.noise import RowNoise


@dataclass(frozen=True, slots=True)
class Views:
    """Masks of the same tokens, and how their values combine.

    Attributes:
        masked_WN: bool.
        weight_WN: float64 weight of a token's log-likelihood where it is masked, 0 elsewhere.
        exact: the sum over the views is the expectation itself; otherwise each view is one sample of it.
    """

    masked_WN: Tensor
    weight_WN: Tensor
    exact: bool


def views(block_N: Tensor, place_N: Tensor, *, samples: int, noise: RowNoise, key: int) -> Views:
    """Return all masks where they are no more than `samples`, and `samples` drawn ones otherwise.

    Blocks are scored beside each other, so that all masks of the fullest block, 2^n - 1, are enough for all.

    Args:
        block_N: int64 block of each token, counted from the block of the first one; ascending.
        place_N: int64 place of each token behind the prompt; ascending.
        samples: views at most, at least 1.
        noise: seed of the draws.
        key: what is drawn depends on seed, key, number of the sample, place and block, and on nothing else: tokens of
            the same key see the same noise at the same place, however many follow.
    """
    fullest = int(torch.bincount(block_N).max())
    if fullest < 63 and 2**fullest - 1 <= samples:
        return all_views(block_N)
    return drawn_views(block_N, place_N, samples=samples, noise=noise, key=key)


def all_views(block_N: Tensor) -> Views:
    """Return every mask of every block; the sum over the views is the ELBO.

    The weight n / k times the probability 1 / (n C(n, k)) of one mask is 1 / (k C(n, k)).
    """
    size_K = torch.bincount(block_N).tolist()
    count = 2 ** max(size_K) - 1
    masked_WN = torch.zeros(count, len(block_N), dtype=torch.bool)
    weight_WN = torch.zeros(count, len(block_N), dtype=torch.float64)
    first = 0
    for size in size_K:
        own = slice(first, first + size)
        number_W = torch.arange(1, 2**size)
        masked_Wn = (number_W[:, None] >> torch.arange(size)) & 1 == 1
        share = [1.0 / (k * math.comb(size, k)) for k in range(1, size + 1)]
        share_W = torch.tensor(share, dtype=torch.float64)[masked_Wn.sum(1) - 1]
        masked_WN[: len(number_W), own] = masked_Wn
        weight_WN[: len(number_W), own] = masked_Wn * share_W[:, None]
        first += size
    return Views(masked_WN, weight_WN, exact=True)


def drawn_views(block_N: Tensor, place_N: Tensor, *, samples: int, noise: RowNoise, key: int) -> Views:
    """Return independent draws of exact-count masks; the mean over the views estimates the ELBO. See `views`."""
    size_K = torch.bincount(block_N).tolist()
    generators = [[noise.generator(key, sample, purpose) for purpose in (0, 1)] for sample in range(samples)]
    places = int(place_N[-1]) + 1
    # One number per place and one per block: a generator's first numbers do not depend on how many are drawn.
    priority_WN = torch.stack([torch.rand(places, generator=each, dtype=torch.float64) for each, _ in generators])
    time_WK = torch.stack([torch.rand(len(size_K), generator=each, dtype=torch.float64) for _, each in generators])
    priority_WN = priority_WN[:, place_N]
    weight_WN = torch.zeros(samples, len(block_N), dtype=torch.float64)
    first = 0
    for block, size in enumerate(size_K):
        own = slice(first, first + size)
        count_W = ((1.0 - time_WK[:, block]) * size).ceil().clamp(min=1)
        rank_Wn = priority_WN[:, own].argsort(dim=1).argsort(dim=1)
        weight_WN[:, own] = (rank_Wn < count_W[:, None]) * (size / count_W)[:, None]
        first += size
    return Views(weight_WN > 0, weight_WN, exact=False)
