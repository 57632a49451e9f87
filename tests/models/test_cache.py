"""The cache: what a forward writes is provisional until it is committed; attention over it equals the dense one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from difflm.models.cache import BlockCache, CachedAttention
from tests.decode.reference import DenseAttend
from tests.decode.tiny import architecture

HEADS, GROUPS, WIDTH = 4, 2, 4


def rows(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return random queries, keys and values of `count` rows."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, HEADS, count, WIDTH), (1, GROUPS, count, WIDTH), (1, GROUPS, count, WIDTH))
    query, key, value = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return query, key, value


@pytest.fixture
def cache() -> BlockCache:
    return BlockCache(architecture(), 16, device="cpu", dtype=torch.float64)


def dense(parts: list[tuple[Tensor, Tensor, Tensor]], visible: Tensor) -> Tensor:
    query, key, value = (torch.cat(each, dim=2) for each in zip(*parts, strict=True))
    return DenseAttend(visible)(0, query, key, value)


def test_new_rows_see_the_prefix_and_themselves(cache: BlockCache) -> None:
    prefix, new = rows(5, 0), rows(3, 1)
    CachedAttention(cache)(0, *prefix)
    cache.commit(5)
    found = CachedAttention(cache)(0, *new)
    assert torch.allclose(found, dense([prefix, new], torch.ones(8, 8, dtype=torch.bool))[:, :, 5:])


def test_the_mask_is_between_new_rows_only(cache: BlockCache) -> None:
    prefix, new = rows(5, 0), rows(4, 1)
    CachedAttention(cache)(0, *prefix)
    cache.commit(5)
    mask = torch.eye(4, dtype=torch.bool)
    mask[2, 0] = True
    visible = torch.ones(9, 9, dtype=torch.bool)
    visible[5:, 5:] = mask
    assert torch.allclose(CachedAttention(cache, mask)(0, *new), dense([prefix, new], visible)[:, :, 5:])


def test_the_kernels_causal_mask_is_the_triangle(cache: BlockCache) -> None:
    new = rows(7, 2)
    expected = dense([new], torch.ones(7, 7, dtype=torch.bool).tril())
    assert torch.allclose(CachedAttention(cache, causal=True)(0, *new), expected)
    cache.commit(7)
    with pytest.raises(AssertionError, match="empty cache"):
        CachedAttention(cache, causal=True)(0, *rows(1, 3))


def test_provisional_rows_are_overwritten(cache: BlockCache) -> None:
    prefix, dropped, new = rows(4, 0), rows(6, 1), rows(2, 2)
    CachedAttention(cache)(0, *prefix)
    cache.commit(4)
    CachedAttention(cache)(0, *dropped)
    found = CachedAttention(cache)(0, *new)
    assert torch.allclose(found, dense([prefix, new], torch.ones(6, 6, dtype=torch.bool))[:, :, 4:])
    assert cache.length == 4


def test_part_of_a_forward_can_be_committed(cache: BlockCache) -> None:
    both, new = rows(6, 0), rows(2, 1)
    CachedAttention(cache)(0, *both)
    cache.commit(4)
    kept = tuple(part[:, :, :4] for part in both)
    found = CachedAttention(cache)(0, *new)
    visible = torch.ones(6, 6, dtype=torch.bool)
    assert torch.allclose(found, dense([(kept[0], kept[1], kept[2]), new], visible)[:, :, 4:])


def test_layers_do_not_share_entries(cache: BlockCache) -> None:
    CachedAttention(cache)(0, *rows(3, 0))
    CachedAttention(cache)(1, *rows(3, 1))
    assert not torch.equal(cache.key[0, :, :, :3], cache.key[1, :, :, :3])
    assert cache.capacity == 16


def test_nothing_is_committed_beyond_the_capacity(cache: BlockCache) -> None:
    with pytest.raises(AssertionError, match="beyond"):
        cache.commit(17)
