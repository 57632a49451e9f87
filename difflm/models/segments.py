"""Attention over the cache in which who sees what is data, so that a forward can be compiled or recorded.

Rows that see the same entries form a segment: so many rows, one behind another, that see so many entries from a base
on. `difflm.models.cache.PackedAttention` does the same by a call for each part, whose sizes are numbers of Python.

Shape legend: see `difflm.types`; N rows, S segments, G key/value heads, E head dimension, T entries of the pool.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Segments(NamedTuple):
    """Which entries the rows of a forward see. A tuple, so that compilers know what is in it.

    Attributes:
        entry_N: int64, pool entry of each row.
        first_S1: int32 [S + 1], first row of each segment, and the number of rows; empty segments are allowed.
        base_S1: int32 [S + 1], first entry that the segment's rows see, in any order; and the number of entries.
        count_S: int32, entries that they see; at least 1 where there are rows.
    """

    entry_N: Tensor
    first_S1: Tensor
    base_S1: Tensor
    count_S: Tensor


SegmentKernel = Callable[[Tensor, Tensor, Tensor, Segments], Tensor]
"""Queries [N, H, E], keys and values [T, G, E] and segments to the mixed values [N, H, E]."""


def masked_kernel(query_NHE: Tensor, key_TGE: Tensor, value_TGE: Tensor, segments: Segments) -> Tensor:
    """Return the mixed values by a mask over all entries of the pool, [N, H, E]: exact anywhere, for small pools."""
    row_N = torch.arange(query_NHE.shape[0], device=query_NHE.device)
    segment_N = torch.searchsorted(segments.first_S1[1:], row_N, right=True)
    base_N1 = segments.base_S1[segment_N][:, None]
    entry_T = torch.arange(key_TGE.shape[0], device=query_NHE.device)
    seen_NT = (entry_T >= base_N1) & (entry_T < base_N1 + segments.count_S[segment_N][:, None])
    query, key, value = (each.transpose(0, 1)[None] for each in (query_NHE, key_TGE, value_TGE))
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen_NT, enable_gqa=True)
    return mixed[0].transpose(0, 1)


@dataclass(frozen=True, slots=True)
class VarlenKernel:
    """The fused kernel for ragged rows: CUDA, 16 bit.

    A segment's keys begin at its base and are `count` many. The kernel reads nothing else of the other segments'
    bases, so that segments of one sequence may share entries.

    Attributes:
        attend: `torch.nn.attention.varlen.varlen_attn`.
    """

    attend: Callable[..., Tensor | tuple[Tensor, Tensor]]

    def __call__(self, query_NHE: Tensor, key_TGE: Tensor, value_TGE: Tensor, segments: Segments) -> Tensor:
        """Return the mixed values, [N, H, E]."""
        mixed = self.attend(
            query_NHE,
            key_TGE,
            value_TGE,
            segments.first_S1,
            segments.base_S1,
            query_NHE.shape[0],
            key_TGE.shape[0],
            enable_gqa=True,
            seqused_k=segments.count_S,
        )
        assert isinstance(mixed, Tensor), "nothing else was asked for"
        return mixed


def kernel_for(device: torch.device, dtype: torch.dtype) -> SegmentKernel:
    """Return the kernel for a device and dtype: the fused one where there is one."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return masked_kernel
    from torch.nn.attention.varlen import varlen_attn  # imports torch's compiler: seconds

    return VarlenKernel(varlen_attn)


@dataclass(frozen=True, slots=True)
class SegmentAttention:
    """An `Attend` over a pool. The rows' keys and values are written first; see `PackedAttention`.

    Attributes:
        key, value: of the pool, [layers, G, T, E].
        segments: who sees what.
        kernel: see `kernel_for`.
    """

    key: Tensor
    value: Tensor
    segments: Segments
    kernel: SegmentKernel

    def __call__(self, layer: int, query_BHNE: Tensor, key_BGNE: Tensor, value_BGNE: Tensor) -> Tensor:
        """Return the mixed values, [1, H, N, E]."""
        key_GTE, value_GTE = self.key[layer], self.value[layer]
        key_GTE[:, self.segments.entry_N], value_GTE[:, self.segments.entry_N] = key_BGNE[0], value_BGNE[0]
        query_NHE, key_TGE, value_TGE = (each.transpose(0, 1) for each in (query_BHNE[0], key_GTE, value_GTE))
        return self.kernel(query_NHE, key_TGE, value_TGE, self.segments).transpose(0, 1)[None]
