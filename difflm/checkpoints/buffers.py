"""Memory for large tensors that goes back to the system as soon as a tensor is gone.

The C library keeps freed blocks of up to 32 MiB for later ones, and what it keeps grows and shrinks by chance. While a
checkpoint is streamed, that would be most of the memory; so what is read, joined or summed lies in mappings of its own,
and casts are made a piece at a time.
"""

from __future__ import annotations

import functools
import math
import mmap
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

PIECE = 2**18
"""Elements that are cast or written at once, about."""
_LEAST_BYTES = 2**17  # below it the C library asks the system neither


def buffer(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Return an uninitialised tensor; on the CPU, a large one has a mapping of its own.

    Args:
        shape: of the tensor.
        dtype: of its elements.
        device: where it lies.
    """
    size = math.prod(shape) * dtype.itemsize
    if torch.device(device).type != "cpu" or size < _LEAST_BYTES or sys.platform == "win32":
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    # Private: a forked worker that writes into it writes into a copy.
    return torch.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE), dtype=dtype).reshape(tuple(shape))


@torch.no_grad()
def joined(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Return tensors one after the other in a buffer, as `torch.cat` does; without gradient.

    Args:
        tensors: equal in every dimension but `dim`.
        dim: along which.
    """
    dtype = functools.reduce(torch.promote_types, (each.dtype for each in tensors))
    shape = list(tensors[0].shape)
    shape[dim] = sum(each.shape[dim] for each in tensors)
    out = buffer(shape, dtype, tensors[0].device)
    for place, each in zip(out.split([each.shape[dim] for each in tensors], dim), tensors, strict=True):
        place.copy_(each.detach())
    return out


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a tensor in pieces of its first dimension, of `PIECE` elements or one row; alike for tensors of a shape."""
    rows = tensor if tensor.dim() else tensor.reshape(1)
    yield from rows.split(max(1, PIECE // max(1, math.prod(rows.shape[1:]))))
