"""FlexAttention over a `Layout`: the fused kernels of CUDA devices; forward only on CPU.

The mask function reads the layout's key ranges (`difflm.models.ranges`), which are data: a new block size, other
documents or a narrowed view reuse the compiled kernels. Compiled once are a number of rows, a row length, a dtype and
whether gradients are wanted. The block mask (which tiles are empty, full or mixed) is counted from the ranges in
O(N^2 / 128) without the N x N mask that `create_block_mask` fills; the two are equal (tested), and no compiler is
needed to make it.

Shape legend: see `difflm.types`; H query heads, G key/value heads, E head dimension, K tiles of `TILE` model rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.compiler import config as compiler_config
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from difflm.errors import ConfigError
from difflm.models.ranges import KeyRanges, key_ranges, ranges_mask
from difflm.types import Layout

TILE = 128
"""Model rows and keys of a tile of the block mask."""

SHAPES = 64
"""Shapes that may be compiled in one process. torch stops at 8 and then runs the unfused form without a word; with
whole-graph compilation, which is used here, it raises instead."""

SMALLEST_HEAD, OLDEST_GPU = 16, (8, 0)
"""Limits of the Triton kernels: head dimension, compute capability."""


FlexKernel = Callable[..., Any]
"""As `flex_attention`, compiled or not."""


def compiled_kernel(backend: str | Callable[..., Any] = "inductor") -> FlexKernel:
    """Return `flex_attention` compiled for fixed shapes.

    Args:
        backend: of torch.compile; tests count with another one.
    """
    return torch.compile(flex_attention, dynamic=False, fullgraph=True, backend=backend)


@cache
def kernel_for(device_type: str) -> FlexKernel:
    """Return the kernel for a type of device: compiled on CUDA, eager elsewhere (no compiler is needed on CPU)."""
    return compiled_kernel() if device_type == "cuda" else flex_attention


def block_mask_of(ranges: KeyRanges) -> BlockMask:
    """Return the block mask of ranges, equal to `create_block_mask` of their predicate.

    Args:
        ranges: on the device of the queries.
    """
    rows, queries = ranges.own_start_BN.shape
    tiles, key_tiles = -(-queries // TILE), -(-ranges.num_keys // TILE)
    start_K = TILE * torch.arange(key_tiles, device=ranges.own_start_BN.device)
    seen_BNK = _overlap(ranges.own_start_BN, ranges.own_stop_BN, start_K)
    seen_BNK += _overlap(ranges.before_start_BN, ranges.before_stop_BN, start_K)
    padded_BNK = F.pad(seen_BNK, (0, 0, 0, tiles * TILE - queries))
    seen_BKK = padded_BNK.view(rows, tiles, TILE, key_tiles).sum(dim=2)
    full_BKK = seen_BKK == TILE * TILE
    mixed_count, mixed_order = _listed(((seen_BKK > 0) & ~full_BKK)[:, None])
    full_count, full_order = _listed(full_BKK[:, None])
    return BlockMask.from_kv_blocks(
        mixed_count,
        mixed_order,
        full_count,
        full_order,
        BLOCK_SIZE=TILE,
        mask_mod=ranges_mask(ranges),
        seq_lengths=(queries, ranges.num_keys),
    )


def _overlap(start_BN: Tensor, stop_BN: Tensor, tile_start_K: Tensor) -> Tensor:
    """Return how many keys of each tile lie in each range, [B, N, K]."""
    last = torch.minimum(stop_BN[..., None], tile_start_K + TILE)
    return (last - torch.maximum(start_BN[..., None], tile_start_K)).clamp_(min=0)


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of chosen tiles in each row of tiles, and all tiles, the chosen ones first, in order."""
    number = chosen.to(torch.int32)
    order = number.argsort(dim=-1, descending=True, stable=True)
    return number.sum(dim=-1, dtype=torch.int32), order.to(torch.int32)


def flex_refusal(device: torch.device | str, *, dtype: torch.dtype, head_dim: int | None) -> str | None:
    """Return why FlexAttention cannot be used, or None if it can (on CPU: forward only).

    Args:
        device: of the model.
        dtype: of the model.
        head_dim: E; None if it is not known.
    """
    device = torch.device(device)
    if device.type not in ("cuda", "cpu"):
        return f"it has no kernel for device type '{device.type}'"
    if device.type == "cpu":
        return None
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it has no kernel for {dtype} on CUDA"
    if head_dim is not None and head_dim < SMALLEST_HEAD:
        return f"its CUDA kernel needs heads of at least {SMALLEST_HEAD}, the model has {head_dim}"
    if find_spec("triton") is None:
        return "the package triton is not installed"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_GPU:
        return (
            f"it needs compute capability {OLDEST_GPU[0]}.{OLDEST_GPU[1]}, the GPU has {capability[0]}.{capability[1]}"
        )
    return None


class FlexAttention:
    """FlexAttention of one layout; reused by every layer and by forward and backward.

    Args:
        layout: attention structure of the batch.
        device: of the queries.
        kernel: compiled or eager; None: the one of the device.
        noisy_only: the queries are the noisy rows alone.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        device: torch.device | str,
        kernel: FlexKernel | None = None,
        noisy_only: bool = False,
    ) -> None:
        device = torch.device(device)
        self.kernel = kernel or kernel_for(device.type)
        self.block_mask = block_mask_of(key_ranges(layout, noisy_only=noisy_only).to(device))

    def __call__(self, layer: int, query_BHNE: Tensor, key_BGNE: Tensor, value_BGNE: Tensor) -> Tensor:
        """Return the mixed values, [B, H, N, E]; on padding the mixture of its run.

        Raises:
            ConfigError: a gradient is wanted on CPU.
        """
        inputs = (query_BHNE, key_BGNE, value_BGNE)
        if query_BHNE.device.type == "cpu" and any(each.requires_grad for each in inputs):
            if torch.is_grad_enabled():
                raise ConfigError(
                    "attention: 'flex' has no backward on cpu (a limit of torch); train on a CUDA device, "
                    "or with attention 'auto', 'split', 'portable' or 'dense'"
                )
            inputs = tuple(each.detach() for each in inputs)  # torch refuses such inputs even without gradients
        with compiler_config.patch(recompile_limit=SHAPES):  # type: ignore[attr-defined]
            return self.kernel(*inputs, block_mask=self.block_mask, enable_gqa=True)
