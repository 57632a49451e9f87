"""CART weights against the sum written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from difflm.diffusion.context import context_weights
from difflm.diffusion.masks import block_numbers
from difflm.diffusion.noise import RowNoise
from difflm.diffusion.objectives import BlockDiffusion
from difflm.errors import ConfigError
from tests.rows import MASK, batch_of


def slow_weights(document_BL: Tensor, block_BL: Tensor, masked_BL: Tensor, *, p: float) -> Tensor:
    """Return the weights by the definition, pair by pair."""
    out = torch.zeros(document_BL.shape, dtype=torch.float64)
    rows, length = document_BL.shape
    for row in range(rows):
        document, block, masked = document_BL[row].tolist(), block_BL[row].tolist(), masked_BL[row].tolist()
        for n in range(length):
            for i in range(length):
                if i == n or document[i] != document[n] or document[n] < 0:
                    continue
                visible = block[i] < block[n] or (block[i] == block[n] and not masked[i])
                if visible:
                    out[row, n] += 0.5 * p * (1 - p) ** (abs(n - i) - 1)
    return out.float()


@given(
    sizes=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=3), min_size=1, max_size=2),
    block_size=st.integers(1, 9),
    p=st.sampled_from([0.02, 0.1, 0.5, 0.97, 1.0]),
    seed=st.integers(0, 99),
)
def test_weights_equal_the_definition(sizes: list[list[int]], block_size: int, p: float, seed: int) -> None:
    batch = batch_of(sizes, row_length=max(sum(row) for row in sizes) + 2)
    block = block_numbers(batch.position_BL, block_size=block_size)
    chance = torch.rand(batch.token_BL.shape, generator=torch.Generator().manual_seed(seed))
    masked = batch.trainable_BL & (chance < 0.5)
    fast = context_weights(batch.document_BL, block, masked, p=p)
    assert torch.allclose(fast, slow_weights(batch.document_BL, block, masked, p=p), atol=1e-6)


def test_a_token_between_visible_neighbours_weighs_about_one() -> None:
    document, block = torch.zeros(1, 401, dtype=torch.int64), torch.zeros(1, 401, dtype=torch.int64)
    masked = torch.zeros(1, 401, dtype=torch.bool)
    masked[0, 200] = True
    assert float(context_weights(document, block, masked, p=0.1)[0, 200]) == pytest.approx(1.0, abs=1e-6)
    assert float(context_weights(document, block, ~torch.zeros_like(masked), p=0.1).max()) == 0.0


def test_the_objective_weighs_by_context_and_divides_by_masked_tokens() -> None:
    batch = batch_of([[20, 9]], row_length=32)
    objective = BlockDiffusion(block_size=4, weighting="cart", cart_p=0.3)
    inputs = objective.prepare(batch, mask_id=MASK, noise=RowNoise(0))
    (term,) = inputs.terms
    masked = inputs.masked_BN[:, :32]
    expected = slow_weights(batch.document_BL, inputs.layout.block_BL, masked, p=0.3)
    assert torch.allclose(term.weight_M, expected[masked], atol=1e-6)
    assert float(term.count) == int(masked.sum())
    with pytest.raises(ConfigError, match=r"objective.cart_p: 0 is not in \(0, 1\]"):
        BlockDiffusion(block_size=4, cart_p=0)
