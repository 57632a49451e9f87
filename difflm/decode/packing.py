"""The rows of one forward: what goes into the model, where it is kept, who sees what.

The rows of all requests stand one behind another, without padding.

Shape legend: see `difflm.types`; here N counts the rows of one forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from difflm.decode.work import Work
from difflm.models.cache import Part

TILE = 128
"""Clean rows that share an attention call, tokens: a longer prompt is cut, so that no mask is wider than needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """The rows of several works.

    Attributes:
        tokens: input ids.
        positions: of each row, from the start of its sequence.
        entries: of the cache, where each row's keys and values are kept.
        firsts: first row of each work.
    """

    tokens: list[int]
    positions: list[int]
    entries: list[int]
    firsts: list[int]


def packed(works: Sequence[Work]) -> Packed:
    """Return the rows of the works, in their order."""
    rows = Packed(tokens=[], positions=[], entries=[], firsts=[])
    for work in works:
        stop = work.start + len(work.tokens)
        rows.firsts.append(len(rows.tokens))
        rows.tokens.extend(work.tokens)
        rows.positions.extend(range(work.start, stop))
        rows.entries.extend(range(work.base + work.start, work.base + stop))
    return rows


def noisy_rows(works: Sequence[Work]) -> list[int]:
    """Return 1 for every noisy row of the works, in their order, and 0 for every clean one."""
    return [int(number >= work.num_clean) for work in works for number in range(len(work.tokens))]


def parts_of(work: Work, first: int, device: torch.device | str) -> Iterator[Part]:
    """Yield the rows of one request's forward in parts that see the same.

    Clean rows see clean rows: all of the same and earlier blocks (block-causal), or of the same and earlier
    positions (token-causal). Noisy rows see every clean row, and their own block: all of it, or the same and
    earlier rows. Clean rows never see noisy ones. Everything sees the cached prefix.

    Source: LLaDA2.0 Eq. 3, the rows of one block at a time.

    Args:
        work: the forward.
        first: its first row among all.
        device: of the masks.
    """
    request, count, clean = work.request, len(work.tokens), work.num_clean
    if request.clean_causal and request.noisy_causal:
        clean = count  # each row sees the rows before it, of whatever kind
    if request.clean_causal and work.start == 0 and clean:
        # A prompt: the kernel skips what no row sees.
        yield Part(first=first, count=clean, base=work.base, stop=clean, causal=True)
    else:
        size = 1 if request.clean_causal else request.block_size
        tile = max(request.block_size, TILE // request.block_size * request.block_size)
        for begin in range(0, clean, tile):
            rows = min(tile, clean - begin)
            stop = work.start + begin + rows
            mask_NN = order_mask((work.start + begin) % size, rows, size, str(device))
            yield Part(first=first + begin, count=rows, base=work.base, stop=stop, mask_NN=mask_NN)
    if count > clean:
        rows = count - clean
        mask_NN = order_mask(0, rows, 1 if request.noisy_causal else rows, str(device))
        yield Part(first=first + clean, count=rows, base=work.base, stop=work.start + count, mask_NN=mask_NN)


def segments_of(work: Work) -> Iterator[tuple[int, int, int]]:
    """Yield the same rows in segments that see the same entries: (rows, base, entries from there on).

    Args:
        work: the forward.
    """
    request, count, clean = work.request, len(work.tokens), work.num_clean
    size = 1 if request.clean_causal else request.block_size
    begin = 0
    while begin < clean:
        end = min(clean, begin + size)  # they begin with a block
        yield end - begin, work.base, work.start + end
        begin = end
    step = 1 if request.noisy_causal else max(1, count - clean)
    for begin in range(clean, count, step):
        yield step, work.base, work.start + begin + step


@lru_cache(maxsize=256)
def order_mask(start: int, count: int, size: int, device: str) -> Tensor | None:
    """Return who sees whom among rows at consecutive positions: those of the same and earlier blocks.

    The same few come back at every step, so they are kept.

    Args:
        start: position of the first row.
        count: rows.
        size: tokens per block.
        device: of the mask.

    Returns:
        bool [count, count], or None if everything is seen.
    """
    if start // size == (start + count - 1) // size:
        return None
    block_N = torch.arange(start, start + count, device=device) // size
    return block_N[:, None] >= block_N[None, :]
