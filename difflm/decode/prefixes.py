"""Which finished blocks the cache holds, so that a prompt that begins with them is not read again. No tensors.

Every running request has a span of the cache to itself. When it leaves, its finished blocks stay where they are until
their room is needed, the longest unused first. A prompt that begins with the same tokens, under the same layout, gets a
copy of their keys and values: they depend on nothing else.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from difflm.decode.slots import Spans


@dataclass(slots=True)
class Chain:
    """Keys of the whole blocks of a row of tokens that grows. A key stands for its block and everything before it.

    Attributes:
        size: tokens per block.
        clean_causal: rows of finished blocks see earlier positions only, instead of their whole block.
        keys: of the blocks so far.
    """

    size: int
    clean_causal: bool
    keys: list[bytes] = field(default_factory=list[bytes])

    def extend(self, tokens: Sequence[int]) -> None:
        """Add the keys of blocks that have become whole.

        Args:
            tokens: the row from its start on.
        """
        for start in range(len(self.keys) * self.size, len(tokens) - self.size + 1, self.size):
            before = self.keys[-1] if self.keys else f"{self.size} {self.clean_causal}".encode()
            block = array("q", tokens[start : start + self.size]).tobytes()
            self.keys.append(blake2b(before + block, digest_size=16).digest())


@dataclass(slots=True)
class Prefixes:
    """The spans of a cache, and what stands in them.

    Attributes:
        spans: the cache's entries.
        kept: whether finished blocks stay when their request leaves.
        held: start of a span -> keys of its blocks, from its first entry on.
        holders: key -> starts of the spans that hold the block (an ordered set).
        idle: starts of the spans without a request, the longest unused first (an ordered set).
        evicted: entries that made room for others so far, tokens.
    """

    spans: Spans
    kept: bool
    held: dict[int, list[bytes]] = field(default_factory=dict[int, list[bytes]])
    holders: dict[bytes, dict[int, None]] = field(default_factory=dict[bytes, dict[int, None]])
    idle: dict[int, None] = field(default_factory=dict[int, None])
    evicted: int = 0

    @property
    def idle_entries(self) -> int:
        """Entries of blocks that no running request owns, tokens."""
        return sum(self.spans.taken[start] for start in self.idle)

    def find(self, keys: Sequence[bytes]) -> tuple[int, int]:
        """Return (start of a span, blocks): the span holds so many leading blocks, none holds more."""
        start = count = 0
        for number, key in enumerate(keys, 1):
            if key not in self.holders:
                break
            start, count = next(iter(self.holders[key])), number
        if count and start in self.idle:
            del self.idle[start]
            self.idle[start] = None
        return start, count

    def reserve(self, count: int) -> int | None:
        """Return the start of a new span, if need be in place of idle ones; None while there is no room.

        Args:
            count: entries, >= 1.
        """
        while (start := self.spans.reserve(count)) is None and self.idle:
            oldest = next(iter(self.idle))
            self.evicted += self.spans.taken[oldest]
            self._free(oldest)
        return start

    def hold(self, start: int, keys: Sequence[bytes]) -> None:
        """Note the blocks that a span holds now; they never change.

        Args:
            start: of the span.
            keys: of all of its blocks.
        """
        known = self.held.setdefault(start, [])
        for key in keys[len(known) :]:
            known.append(key)
            self.holders.setdefault(key, {})[start] = None

    def leave(self, start: int, size: int) -> None:
        """Take a span back from its request; its blocks stay, unless another span holds all of them.

        Args:
            start: of the span.
            size: tokens per block.
        """
        keys = self.held.get(start, [])
        for key in keys:
            for other in list(self.holders[key]):
                if other in self.idle and self.held[other][-1] == key:
                    self._free(other)  # this span holds all of it
        if not keys or len(self.holders[keys[-1]]) > 1:
            self._free(start)
        else:
            self.spans.shrink(start, len(keys) * size)
            self.idle[start] = None

    def _free(self, start: int) -> None:
        for key in self.held.pop(start, ()):
            del self.holders[key][start]
            if not self.holders[key]:
                del self.holders[key]
        self.idle.pop(start, None)
        self.spans.release(start)
