"""The pool: what a forward writes is provisional until it is counted; attention over spans equals the dense one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from difflm.models.cache import CachePool, PackedAttention, Part, bytes_per_token
from tests.decode.reference import DenseAttend
from tests.decode.tiny import architecture

HEADS, GROUPS, WIDTH = 4, 2, 4
Triple = tuple[Tensor, Tensor, Tensor]


def rows(count: int, seed: int) -> Triple:
    """Return random queries, keys and values of `count` rows."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, HEADS, count, WIDTH), (1, GROUPS, count, WIDTH), (1, GROUPS, count, WIDTH))
    query, key, value = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return query, key, value


@pytest.fixture
def pool() -> CachePool:
    pool = CachePool(architecture(), device="cpu", dtype=torch.float64)
    pool.ensure(32, most=32)
    return pool


def attend(pool: CachePool, base: int, length: int, new: Triple, mask: Tensor | None = None, layer: int = 0) -> Tensor:
    """Return the attention of new rows of one sequence of which `length` entries are committed."""
    count = new[0].shape[2]
    part = Part(first=0, count=count, base=base, stop=length + count, mask_NN=mask)
    return PackedAttention(pool, torch.arange(base + length, base + length + count), [part])(layer, *new)


def dense(parts: list[Triple], visible: Tensor) -> Tensor:
    query, key, value = (torch.cat(each, dim=2) for each in zip(*parts, strict=True))
    return DenseAttend(visible)(0, query, key, value)


def everything(count: int) -> Tensor:
    return torch.ones(count, count, dtype=torch.bool)


def test_new_rows_see_the_prefix_and_themselves(pool: CachePool) -> None:
    prefix, new = rows(5, 0), rows(3, 1)
    attend(pool, 7, 0, prefix)
    assert torch.allclose(attend(pool, 7, 5, new), dense([prefix, new], everything(8))[:, :, 5:])


def test_the_mask_is_between_new_rows_only(pool: CachePool) -> None:
    prefix, new = rows(5, 0), rows(4, 1)
    attend(pool, 0, 0, prefix)
    mask = torch.eye(4, dtype=torch.bool)
    mask[2, 0] = True
    visible = everything(9)
    visible[5:, 5:] = mask
    assert torch.allclose(attend(pool, 0, 5, new, mask), dense([prefix, new], visible)[:, :, 5:])


def test_the_kernels_causal_mask_is_the_triangle(pool: CachePool) -> None:
    new = rows(7, 2)
    part = Part(first=0, count=7, base=3, stop=7, causal=True)
    found = PackedAttention(pool, torch.arange(3, 10), [part])(0, *new)
    assert torch.allclose(found, dense([new], everything(7).tril()))
    with pytest.raises(AssertionError, match="causal"):
        PackedAttention(pool, torch.arange(3), [Part(first=0, count=1, base=0, stop=3, causal=True)])


def test_provisional_rows_are_overwritten(pool: CachePool) -> None:
    prefix, dropped, new = rows(4, 0), rows(6, 1), rows(2, 2)
    attend(pool, 2, 0, prefix)
    attend(pool, 2, 4, dropped)
    assert torch.allclose(attend(pool, 2, 4, new), dense([prefix, new], everything(6))[:, :, 4:])


def test_rows_of_many_sequences_see_their_own_span_only(pool: CachePool) -> None:
    prefixes = {0: rows(3, 0), 16: rows(6, 1)}
    for base, prefix in prefixes.items():
        attend(pool, base, 0, prefix)
    first, second = rows(2, 2), rows(4, 3)
    together = tuple(torch.cat(pair, dim=2) for pair in zip(first, second, strict=True))
    parts = [Part(first=0, count=2, base=0, stop=5), Part(first=2, count=4, base=16, stop=10)]
    entries = torch.cat([torch.arange(3, 5), torch.arange(22, 26)])
    found = PackedAttention(pool, entries, parts)(0, together[0], together[1], together[2])
    assert torch.allclose(found[:, :, :2], dense([prefixes[0], first], everything(5))[:, :, 3:])
    assert torch.allclose(found[:, :, 2:], dense([prefixes[16], second], everything(10))[:, :, 6:])


def test_layers_do_not_share_entries(pool: CachePool) -> None:
    attend(pool, 0, 0, rows(3, 0))
    attend(pool, 0, 0, rows(3, 1), layer=1)
    assert not torch.equal(pool.key[0, :, :3], pool.key[1, :, :3])


@pytest.mark.parametrize(("source", "target", "count"), [(0, 9, 5), (0, 2, 6), (5, 1, 7), (3, 3, 4)])
def test_entries_are_copied_also_onto_themselves(pool: CachePool, source: int, target: int, count: int) -> None:
    for stored in (pool.key, pool.value):
        stored.zero_()  # what is never written may be NaN, which equals nothing
    for layer in range(2):
        attend(pool, 0, 0, rows(20, layer), layer=layer)
    before = pool.key.clone(), pool.value.clone()
    pool.copy(source, target, count)
    for stored, was in zip((pool.key, pool.value), before, strict=True):
        expected = was.clone()
        expected[:, :, target : target + count] = was[:, :, source : source + count]
        assert torch.equal(stored, expected)


def test_growing_keeps_what_is_stored_and_doubles_up_to_the_most() -> None:
    pool = CachePool(architecture(), device="cpu", dtype=torch.float64)
    pool.ensure(5, most=100)
    assert pool.capacity == 5
    prefix, new = rows(5, 0), rows(2, 1)
    attend(pool, 0, 0, prefix)
    for need, most, expected in ((7, 100, 10), (11, 12, 12), (30, 12, 30), (4, 100, 30)):
        pool.ensure(need, most=most)
        assert pool.capacity == expected
    assert torch.allclose(attend(pool, 0, 5, new), dense([prefix, new], everything(7))[:, :, 5:])


def test_a_token_takes_keys_and_values_of_all_layers() -> None:
    pool = CachePool(architecture(), device="cpu", dtype=torch.bfloat16)
    pool.ensure(9, most=9)
    stored = sum(each.numel() * each.element_size() for each in (pool.key, pool.value))
    assert 9 * bytes_per_token(architecture(), torch.bfloat16) == stored
