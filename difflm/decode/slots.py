"""Which span of the cache belongs to whom. No tensors."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Spans:
    """Contiguous spans of a cache of fixed size: the lowest gap that is large enough.

    Attributes:
        size: entries of the cache, tokens.
        taken: start -> length of each span.
    """

    size: int
    taken: dict[int, int] = field(default_factory=dict[int, int])

    @property
    def used(self) -> int:
        """Entries in spans, tokens."""
        return sum(self.taken.values())

    def reserve(self, count: int) -> int | None:
        """Return the start of a new span of `count` >= 1 entries; None while no gap is large enough."""
        start = 0
        for first in sorted(self.taken):
            if first - start >= count:
                break
            start = first + self.taken[first]
        if start + count > self.size:
            return None
        self.taken[start] = count
        return start

    def shrink(self, start: int, count: int) -> None:
        """Free all but the first `count` >= 1 entries of the span that begins at `start`."""
        self.taken[start] = min(count, self.taken[start])

    def release(self, start: int) -> None:
        """Free the span that begins at `start`."""
        del self.taken[start]
