"""Key/value cache of committed tokens, and the attention that reads and extends it.

Shape legend: see `difflm.types`; G key/value heads, E head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from difflm.models.config import ModelConfig


class BlockCache:
    """Preallocated keys and values of one sequence; the first `length` entries are committed.

    A forward writes its rows behind the committed ones; they stay provisional (the next forward overwrites
    them) until `commit` advances `length`. Rows of masks are therefore never part of the committed prefix.

    Args:
        config: architecture.
        capacity: tokens to make room for.
        device, dtype: of the stored tensors.
    """

    def __init__(self, config: ModelConfig, capacity: int, *, device: str | torch.device, dtype: torch.dtype) -> None:
        shape = (config.num_layers, 1, config.num_kv_heads, capacity, config.head_dim)
        self.key = torch.zeros(shape, device=device, dtype=dtype)
        self.value = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    @property
    def capacity(self) -> int:
        """Tokens the cache has room for."""
        return self.key.shape[3]

    def commit(self, count: int) -> None:
        """Make the first `count` provisional entries part of the committed prefix."""
        assert 0 <= count <= self.capacity - self.length, "commit beyond the cache"
        self.length += count


@dataclass(frozen=True, slots=True)
class CachedAttention:
    """Attention of new rows over a cache and over themselves; writes the rows' keys and values behind it.

    Attributes:
        cache: the sequence's cache.
        mask_NN: bool [N, N], visibility among the new rows; None lets every new row see every other.
            All new rows see the whole committed prefix.
        causal: new rows see the same and earlier new rows, without a mask; only on an empty cache.
    """

    cache: BlockCache
    mask_NN: Tensor | None = None
    causal: bool = False

    def __call__(self, layer: int, query_BHNE: Tensor, key_BGNE: Tensor, value_BGNE: Tensor) -> Tensor:
        """Return the mixed values, [1, H, N, E]."""
        start, count = self.cache.length, query_BHNE.shape[2]
        stop = start + count
        key, value = self.cache.key[layer], self.cache.value[layer]
        key[:, :, start:stop], value[:, :, start:stop] = key_BGNE, value_BGNE
        assert not (self.causal and (start or self.mask_NN is not None)), "causal: empty cache and no mask only"
        mask = None
        if self.mask_NN is not None:
            prefix = self.mask_NN.new_ones(count, start)
            mask = torch.cat([prefix, self.mask_NN], dim=1)
        return F.scaled_dot_product_attention(
            query_BHNE, key[:, :, :stop], value[:, :, :stop], attn_mask=mask, is_causal=self.causal, enable_gqa=True
        )
