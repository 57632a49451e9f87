"""Masks to score tokens under: all of them weigh like the definition, drawn ones estimate it and share their noise."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difflm.diffusion.noise import RowNoise
from difflm.diffusion.views import all_views, drawn_views, views

NOISE = RowNoise(0)


def blocks(*sizes: int) -> torch.Tensor:
    """Return the block of each token, for blocks of these sizes."""
    return torch.cat([torch.full((size,), block) for block, size in enumerate(sizes)])


@pytest.mark.parametrize("sizes", [(1,), (3,), (2, 4, 1), (1, 1, 1)])
def test_all_masks_of_a_block_weigh_as_the_definition_says(sizes: tuple[int, ...]) -> None:
    found = all_views(blocks(*sizes))
    assert found.exact
    first = 0
    for size in sizes:
        expected: dict[tuple[bool, ...], float] = {}
        for k in range(1, size + 1):
            chosen = list(itertools.combinations(range(size), k))
            for each in chosen:
                mask = tuple(place in each for place in range(size))
                expected[mask] = 1 / size / len(chosen) * size / k  # chance of k, of the mask; weight n / k
        own = slice(first, first + size)
        masks = [tuple(mask) for mask in found.masked_WN[:, own].tolist()]
        seen = dict(zip(masks, found.weight_WN[:, own].max(dim=1).values.tolist(), strict=True))
        seen.pop((False,) * size, None)  # where another block has more masks
        assert seen == pytest.approx(expected)
        assert sum(any(mask) for mask in masks) == len(expected)
        first += size
    assert torch.allclose(found.weight_WN.sum(0), torch.ones(first, dtype=torch.float64))
    assert torch.equal(found.weight_WN > 0, found.masked_WN)


def test_drawn_masks_have_uniform_counts_weights_n_over_k_and_an_expected_weight_of_one() -> None:
    sizes, samples = (3, 4), 4000
    found = drawn_views(blocks(*sizes), torch.arange(7), samples=samples, noise=NOISE, key=5)
    assert not found.exact
    assert torch.equal(found.weight_WN > 0, found.masked_WN)
    for size, own in zip(sizes, (slice(0, 3), slice(3, 7)), strict=True):
        count_W = found.masked_WN[:, own].sum(1)
        shares = torch.bincount(count_W, minlength=size + 1) / samples
        assert shares[0] == 0
        assert shares[1:].tolist() == pytest.approx([1 / size] * size, abs=0.04)
        masked_W = found.weight_WN[:, own].max(dim=1).values
        assert torch.allclose(masked_W, size / count_W.double())
    assert found.weight_WN.mean(0).tolist() == pytest.approx([1.0] * 7, abs=0.08)


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 7))
def test_texts_of_any_length_see_the_same_noise_at_the_same_place(length: int, more: int, start: int) -> None:
    def drawn(count: int) -> torch.Tensor:
        block_N = (torch.arange(count) + start) // 8
        return drawn_views(block_N, torch.arange(count), samples=3, noise=NOISE, key=9).weight_WN

    short, long = drawn(length), drawn(length + more)
    whole = (length + start) // 8 * 8 - start
    if whole > 0:
        assert torch.equal(short[:, :whole], long[:, :whole])
    # In a block that one of them fills further, what the shorter masks comes first in the longer one's order.
    for one, other in zip(short[:, max(whole, 0) :] > 0, long[:, max(whole, 0) : length] > 0, strict=True):
        assert bool((one <= other).all() or (other <= one).all())


def test_places_that_are_left_out_keep_the_noise_of_the_others_aligned() -> None:
    block_N = torch.zeros(8, dtype=torch.int64)
    whole, later = (
        drawn_views(block_N[first:], torch.arange(first, 8), samples=50, noise=NOISE, key=1).masked_WN
        for first in (0, 1)
    )
    for one, other in zip(whole[:, 1:], later, strict=True):
        assert bool((one <= other).all() or (other <= one).all())


def test_noise_is_of_seed_key_and_sample() -> None:
    def drawn(seed: int, key: int, samples: int) -> torch.Tensor:
        return drawn_views(blocks(8, 8), torch.arange(16), samples=samples, noise=RowNoise(seed), key=key).weight_WN

    base = drawn(0, 0, 6)
    assert torch.equal(base, drawn(0, 0, 6))
    assert torch.equal(base[:4], drawn(0, 0, 4))
    assert len({tuple(row) for row in base.tolist()}) == 6
    assert not torch.equal(base, drawn(1, 0, 6))
    assert not torch.equal(base, drawn(0, 1, 6))


def test_all_masks_are_used_where_they_are_few_enough() -> None:
    block_N, place_N = blocks(2, 3), torch.arange(5)
    assert not views(block_N, place_N, samples=6, noise=NOISE, key=0).exact
    found = views(block_N, place_N, samples=7, noise=NOISE, key=0)
    assert found.exact
    assert len(found.masked_WN) == 7
    many = torch.zeros(100, dtype=torch.int64)
    assert len(views(many, torch.arange(100), samples=2, noise=NOISE, key=0).masked_WN) == 2
