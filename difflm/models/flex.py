"""FlexAttention over a `Layout`: the fused kernels of CUDA devices; forward only on CPU.

The mask function reads the layout's key ranges (`difflm.models.ranges`), which are data: a new block size, other
documents or a narrowed view reuse the compiled kernels. Compiled once are a number of rows, a row length, a dtype and
whether gradients are wanted.

Shape legend: see `difflm.types`; H query heads, G key/value heads, E head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from difflm.errors import ConfigError
from difflm.models.ranges import key_ranges, ranges_mask
from difflm.types import Layout

SHAPES = 64
"""Shapes that may be compiled in one process. torch stops at 8 and then runs the unfused form without a word; with
whole-graph compilation, which is used here, it raises instead."""

SMALLEST_HEAD, OLDEST_GPU = 16, (8, 0)
"""Limits of the Triton kernels: head dimension, compute capability."""


@dataclass(frozen=True, slots=True)
class FlexKernels:
    """The two functions of FlexAttention, compiled or not.

    Attributes:
        block_mask: as `create_block_mask`.
        attend: as `flex_attention`.
    """

    block_mask: Callable[..., BlockMask]
    attend: Callable[..., Any]


EAGER = FlexKernels(create_block_mask, flex_attention)


def compiled_kernels(backend: str | Callable[..., Any] = "inductor") -> FlexKernels:
    """Return both functions compiled for fixed shapes.

    Args:
        backend: of torch.compile; tests count with another one.
    """
    return FlexKernels(
        torch.compile(create_block_mask, dynamic=False, fullgraph=True, backend=backend),
        torch.compile(flex_attention, dynamic=False, fullgraph=True, backend=backend),
    )


@cache
def kernels_for(device_type: str) -> FlexKernels:
    """Return the functions for a type of device: compiled on CUDA, eager elsewhere (no compiler is needed on CPU)."""
    return compiled_kernels() if device_type == "cuda" else EAGER


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
        kernels: compiled or eager functions; None: those of the device.
    """

    def __init__(self, layout: Layout, *, device: torch.device | str, kernels: FlexKernels | None = None) -> None:
        device = torch.device(device)
        self.kernels = kernels or kernels_for(device.type)
        ranges = key_ranges(layout).to(device)
        rows, length = ranges.own_start_BN.shape
        with torch.compiler.config.patch(recompile_limit=SHAPES):  # type: ignore[attr-defined]
            self.block_mask = self.kernels.block_mask(
                ranges_mask(ranges), rows, None, length, length, device=str(device)
            )

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
        with torch.compiler.config.patch(recompile_limit=SHAPES):  # type: ignore[attr-defined]
            return self.kernels.attend(*inputs, block_mask=self.block_mask, enable_gqa=True)
