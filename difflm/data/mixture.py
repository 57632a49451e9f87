"""Rows of several sources drawn by their weights: still a pure function of (seed, epoch, position).

An epoch of a mixture is a fixed number of slots. Each source gets its share of them, in an order drawn from (seed,
epoch). The c-th row ever taken from a source is row c modulo R of its pass number c // R, each pass in an order of its
own: a source that is larger than its share is never drawn twice before all of it was drawn, a smaller one repeats.
The noise of a row changes with its source's pass.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch

from difflm.data.loader import RowOrder
from difflm.data.rows import Array, PackCounts, PackedRows, RowSource
from difflm.data.store import joined
from difflm.errors import DataError

_ADDED = (
    *("documents", "rows", "tokens", "trainable", "fill", "split", "pieces", "cut"),
    *("dropped", "untrainable", "dropped_text", "dropped_tokens", "rows_best_fit", "rows_greedy"),
)
"""The fields of `PackCounts` that sum over sources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureOrder:
    """Which row comes at which slot of an epoch, for sources whose rows are numbered one after another.

    Attributes:
        sizes: rows of each source.
        weights: share of each source in the slots, in proportion.
        seed: another seed is another order.
        shuffle: False takes the rows of each source in order, the sources evenly interleaved.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        """Check that every source can be drawn."""
        if not self.sizes or min(self.sizes) < 1 or len(self.sizes) != len(self.weights):
            raise DataError(f"data: rows {list(self.sizes)} with weights {list(self.weights)} cannot be drawn from")

    @property
    def num_rows(self) -> int:
        """Return the slots of an epoch: as many as there are rows, more if a source would get none otherwise."""
        smallest = min(self.weights) / sum(self.weights)
        return max(sum(self.sizes), int(np.ceil(1.0 / smallest)))

    def slots(self) -> tuple[int, ...]:
        """Return how many slots of an epoch each source gets: its share of them, rounded by largest remainder."""
        return largest_remainder(self.weights, self.num_rows)

    def epoch(self, epoch: int) -> tuple[int, ...]:
        """Return the row number at each slot of an epoch."""
        return tuple(self._draw(epoch)[0].tolist())

    def passes(self, epoch: int) -> tuple[int, ...]:
        """Return the pass over its source at each slot of an epoch; it decides the row's noise."""
        return tuple(self._draw(epoch)[1].tolist())

    def _draw(self, epoch: int) -> tuple[Array, Array]:
        slots = self.slots()
        source = self._interleaved(slots, epoch)
        row, passes = np.empty(len(source), dtype=np.int64), np.empty(len(source), dtype=np.int64)
        base = 0
        for number, (size, count) in enumerate(zip(self.sizes, slots, strict=True)):
            taken = np.arange(epoch * count, (epoch + 1) * count)
            orders = RowOrder(num_rows=size, seed=_source_seed(self.seed, number), shuffle=self.shuffle)
            at = source == number
            passes[at] = taken // size
            drawn = [np.array(orders.epoch(each))[taken[taken // size == each] % size] for each in _passes(taken, size)]
            row[at] = base + np.concatenate(drawn)
            base += size
        return row, passes

    def _interleaved(self, slots: tuple[int, ...], epoch: int) -> Array:
        source = np.repeat(np.arange(len(slots)), slots)
        if not self.shuffle:
            place = np.concatenate([(np.arange(count) + 0.5) / count for count in slots])
            return source[np.argsort(place, kind="stable")]
        digest = hashlib.blake2b(f"mixture:{self.seed}:{epoch}".encode("ascii"), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        return source[torch.randperm(len(source), generator=generator).numpy()]


def _passes(taken: Array, size: int) -> range:
    return range(int(taken[0]) // size, int(taken[-1]) // size + 1)


def largest_remainder(weights: Sequence[float], total: int) -> tuple[int, ...]:
    """Return whole numbers in proportion to `weights` that sum to `total`; ties go to the earlier one."""
    exact = [Fraction(weight) * total / sum(map(Fraction, weights)) for weight in weights]
    floor = [int(each) for each in exact]
    by_rest = sorted(range(len(exact)), key=lambda index: (floor[index] - exact[index], index))
    for index in by_rest[: total - sum(floor)]:
        floor[index] += 1
    return tuple(floor)


def _source_seed(seed: int, source: int) -> int:
    """Return a seed of its own for each source, so that equally large ones are not shuffled alike."""
    digest = hashlib.blake2b(f"source:{seed}:{source}".encode("ascii"), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def row_order(rows: PackedRows, *, seed: int, shuffle: bool) -> RowOrder | MixtureOrder:
    """Return the order in which rows are drawn: every row once an epoch, or by the weights of their sources."""
    weights = [source.weight for source in rows.sources if source.weight is not None]
    if not weights:
        return RowOrder(num_rows=len(rows), seed=seed, shuffle=shuffle)
    sizes = tuple(source.counts.rows for source in rows.sources)
    return MixtureOrder(sizes=sizes, weights=tuple(weights), seed=seed, shuffle=shuffle)


def mix(parts: Sequence[PackedRows], names: Sequence[str], weights: Sequence[float]) -> PackedRows:
    """Return the rows of several sources, packed apart, as one data set with a source for each.

    Args:
        parts: rows of each source, made with the same options.
        names: of the sources.
        weights: of the sources, in proportion; none draws every row once an epoch.

    Raises:
        DataError: some of them hold preference pairs and others do not.
    """
    if len({part.store.paired for part in parts}) > 1:
        raise DataError(
            f"data: preference pairs beside other documents in one mixture ({', '.join(names)}); train on them apart"
        )
    document_base = np.cumsum([0, *(len(part.store) for part in parts)])
    piece_base = np.cumsum([0, *(len(part.document) for part in parts)])
    starts = [part.row_start[:-1] + base for part, base in zip(parts, piece_base, strict=False)]
    weighted = zip(names, parts, weights or [None] * len(parts), strict=True)
    digest = hashlib.sha256("".join(part.fingerprint for part in parts).encode("ascii"))
    digest.update(repr([float(weight) for weight in weights]).encode("ascii"))
    return PackedRows(
        store=joined([part.store for part in parts]),
        row_start=np.concatenate([*starts, piece_base[-1:]]).astype(np.int64),
        document=np.concatenate([part.document + base for part, base in zip(parts, document_base, strict=False)]),
        start=np.concatenate([part.start for part in parts]),
        length=np.concatenate([part.length for part in parts]),
        fill=np.concatenate([part.fill for part in parts]),
        options=parts[0].options,
        counts=_summed([part.counts for part in parts]),
        fingerprint=digest.hexdigest(),
        sources=tuple(RowSource(name=name, counts=part.counts, weight=weight) for name, part, weight in weighted),
    )


def _summed(counts: Sequence[PackCounts]) -> PackCounts:
    columns = [dataclasses.asdict(each) for each in counts]
    totals = {name: sum(column[name] for column in columns) for name in _ADDED}
    first_dropped = next((each.first_dropped for each in counts if each.first_dropped), "")
    return replace(counts[0], first_dropped=first_dropped, **totals)
