"""Attention over segments sees what the parts see, by a mask and by the rules of torch's fused kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from difflm.models.cache import CachePool, PackedAttention, Part
from difflm.models.segments import SegmentAttention, Segments, VarlenKernel, kernel_for, masked_kernel
from tests.decode.tiny import architecture

ENTRIES = 40
SEGMENTS = [(2, 8, 5), (3, 0, 7), (0, 39, 1), (3, 0, 10), (4, 20, 4), (2, 39, 1)]
"""Rows, base, entries: bases in any order, two segments of one sequence, one without rows, padding at the end."""


def segments() -> Segments:
    firsts = [0]
    for count, _, _ in SEGMENTS:
        firsts.append(firsts[-1] + count)
    return Segments(
        entry_N=torch.tensor([11, 12, 4, 5, 6, 7, 8, 9, 20, 21, 22, 23, 39, 39]),
        first_S1=torch.tensor(firsts, dtype=torch.int32),
        base_S1=torch.tensor([*(base for _, base, _ in SEGMENTS), ENTRIES], dtype=torch.int32),
        count_S=torch.tensor([seen for _, _, seen in SEGMENTS], dtype=torch.int32),
    )


def ragged(query: Tensor, key: Tensor, value: Tensor, first: Tensor, base: Tensor, *sizes: int, **more: Any) -> Tensor:
    """Stands in for torch's kernel: segment by segment, keys from each start on, as many as are said to be used."""
    assert sizes == (query.shape[0], key.shape[0])
    assert more.pop("enable_gqa")
    used = more.pop("seqused_k")
    assert not more
    assert {each.dtype for each in (first, base, used)} == {torch.int32}
    assert len(first) == len(base) == len(used) + 1
    out = torch.full_like(query, torch.nan)
    for number in range(len(used)):
        rows = slice(int(first[number]), int(first[number + 1]))
        seen = slice(int(base[number]), int(base[number] + used[number]))
        if rows.start < rows.stop:
            own, keys, values = (each.transpose(0, 1)[None] for each in (query[rows], key[seen], value[seen]))
            mixed = F.scaled_dot_product_attention(own, keys, values, enable_gqa=True)
            out[rows] = mixed[0].transpose(0, 1)
    return out


@pytest.mark.parametrize("kernel", [masked_kernel, VarlenKernel(ragged)], ids=["masked", "varlen"])
def test_segments_see_what_parts_see(kernel: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    pools: list[CachePool] = []
    for _ in range(2):
        pool = CachePool(architecture(), device="cpu", dtype=torch.float64)
        pool.ensure(ENTRIES, most=ENTRIES)
        generator.manual_seed(1)
        for stored in (pool.key, pool.value):
            stored.copy_(torch.randn(stored.shape, generator=generator, dtype=torch.float64))
        pools.append(pool)
    count = sum(rows for rows, _, _ in SEGMENTS)
    shapes = ((1, 4, count, 4), (1, 2, count, 4), (1, 2, count, 4))
    query, key, value = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    given, parts, first = segments(), [], 0
    for rows, base, seen in SEGMENTS:
        if rows:
            parts.append(Part(first=first, count=rows, base=base, stop=seen))
        first += rows
    for layer in (1, 0):
        expected = PackedAttention(pools[0], given.entry_N, parts)(layer, query, key, value)
        found = SegmentAttention(pools[1].key, pools[1].value, given, kernel)(layer, query, key, value)
        assert torch.allclose(found, expected, atol=1e-12)
    assert torch.equal(pools[0].key, pools[1].key)
    assert torch.equal(pools[0].value, pools[1].value)


def test_the_fused_kernel_is_taken_where_there_is_one() -> None:
    from torch.nn.attention.varlen import varlen_attn

    for dtype in (torch.bfloat16, torch.float16):
        assert kernel_for(torch.device("cuda"), dtype) == VarlenKernel(varlen_attn)
        assert kernel_for(torch.device("cpu"), dtype) is masked_kernel
    assert kernel_for(torch.device("cuda"), torch.float32) is masked_kernel
