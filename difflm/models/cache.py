"""Keys and values of running sequences in one pool, and the attention that reads and extends them.

Shape legend: see `difflm.types`; G key/value heads, E head dimension, T entries of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from difflm.models.config import ModelConfig


def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return what the keys and values of one token take, all layers together, bytes."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize


class CachePool:
    """Keys and values of many sequences, each in a contiguous span of entries; who owns which is decided elsewhere.

    Grows by doubling as spans further up are used, and never shrinks.

    Args:
        config: architecture.
        device, dtype: of the stored tensors.
    """

    def __init__(self, config: ModelConfig, *, device: str | torch.device, dtype: torch.dtype) -> None:
        self.config = config
        self.key, self.value = (self._empty(0, device, dtype) for _ in range(2))

    def _empty(self, capacity: int, device: str | torch.device, dtype: torch.dtype) -> Tensor:
        shape = (self.config.num_layers, self.config.num_kv_heads, capacity, self.config.head_dim)
        return torch.empty(shape, device=device, dtype=dtype)

    @property
    def capacity(self) -> int:
        """Entries there is room for now, tokens."""
        return self.key.shape[2]

    def ensure(self, capacity: int, *, most: int) -> None:
        """Make room for entries below `capacity`, keeping what is stored.

        Args:
            capacity: tokens.
            most: tokens that growing ahead of the need must not exceed.
        """
        if capacity <= self.capacity:
            return
        wanted = max(capacity, min(2 * self.capacity, most))
        self.key, self.value = self._grown(self.key, wanted), self._grown(self.value, wanted)

    def copy(self, source: int, target: int, count: int) -> None:
        """Copy `count` entries from `source` on to `target` on; the two ranges may overlap."""
        for stored in (*self.key, *self.value):  # layer by layer: little memory for what is on its way
            stored[:, target : target + count] = stored[:, source : source + count].clone()

    def _grown(self, stored: Tensor, capacity: int) -> Tensor:
        larger = self._empty(capacity, stored.device, stored.dtype)
        larger[:, :, : stored.shape[2]] = stored
        return larger


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows of a forward that see the same entries, up to a mask among themselves.

    Attributes:
        first, count: which rows of the forward.
        base: first entry of the sequence's span.
        stop: entries that the rows see: base .. base + stop - 1, the last `count` of them their own.
        mask_NN: bool [count, count], visibility of the part's own rows among each other; None is everything.
        causal: each row sees the same and earlier rows, by the kernel's own triangle; only where stop = count.
    """

    first: int
    count: int
    base: int
    stop: int
    mask_NN: Tensor | None = None
    causal: bool = False


class PackedAttention:
    """Attention of the rows of many sequences, one behind another without padding, over each one's cache.

    The keys and values of the rows are written to the pool first. They are provisional: whoever counts a sequence's
    committed entries decides whether the next forward overwrites them.

    Args:
        pool: the cache.
        entry_N: int64, pool entry of each row.
        parts: every row in exactly one part; on the pool's device.
    """

    def __init__(self, pool: CachePool, entry_N: Tensor, parts: Sequence[Part]) -> None:
        self.pool, self.entry_N, self.parts = pool, entry_N, parts
        self.mask_QT = [_whole_mask(part) for part in parts]

    def __call__(self, layer: int, query_BHNE: Tensor, key_BGNE: Tensor, value_BGNE: Tensor) -> Tensor:
        """Return the mixed values, [1, H, N, E]."""
        key_GTE, value_GTE = self.pool.key[layer], self.pool.value[layer]
        key_GTE[:, self.entry_N], value_GTE[:, self.entry_N] = key_BGNE[0], value_BGNE[0]
        mixed = [
            F.scaled_dot_product_attention(
                query_BHNE[:, :, part.first : part.first + part.count],
                key_GTE[None, :, part.base : part.base + part.stop],
                value_GTE[None, :, part.base : part.base + part.stop],
                attn_mask=mask_QT,
                is_causal=part.causal,
                enable_gqa=True,
            )
            for part, mask_QT in zip(self.parts, self.mask_QT, strict=True)
        ]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=2)


def _whole_mask(part: Part) -> Tensor | None:
    """Return bool [count, stop]: everything before the part's own rows, then its mask among them."""
    assert not part.causal or (part.mask_NN is None and part.stop == part.count), "causal: own rows only, and no mask"
    if part.mask_NN is None:
        return None
    return torch.cat([part.mask_NN.new_ones(part.count, part.stop - part.count), part.mask_NN], dim=1)
