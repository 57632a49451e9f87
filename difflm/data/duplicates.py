"""Documents that say the same, or nearly: found on disk, in memory that does not grow with the data (a bit a document).

Exact: content hashes are dealt into files by their first byte; each file is sorted by itself.
Near: a document is the set of its 16-byte stretches, lower case and with single spaces. One-permutation hashing keeps
the smallest hash in each of 64 bins (a document with few stretches borrows from the next full bin); two documents agree
in a bin with the probability of their Jaccard similarity. 16 bands of 4 bins make the candidates, all 64 bins decide.

Source: Li, Owen, Zhang 2012 (one-permutation hashing); Shrivastava, Li 2014 (empty bins); Broder 1997 (MinHash).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRAM, BINS, BANDS = 16, 64, 16
_EMPTY = np.uint64(2**64 - 1)
_BIN = np.arange(BINS, dtype=np.uint64)
_EDGES = _BIN << np.uint64(58)
_STRIDE = 1 << 16
_SKETCH_BYTES = 2 * BINS
_EXACT = np.dtype([("head", "<u8"), ("tail", "<u8"), ("index", "<i8")])
_KEYED = np.dtype([("key", "<u8"), ("index", "<i8")])
_PARTITION_BYTES = 4 << 20
Words = NDArray[np.uint64]


class Flags:
    """One bit for each of `count` documents, all off at first."""

    def __init__(self, count: int) -> None:
        self._bytes = np.zeros(-(-count // 8), dtype=np.uint8)

    def set(self, index: NDArray[Any]) -> None:
        """Switch on the bits of these documents."""
        np.bitwise_or.at(self._bytes, index >> 3, (1 << (index & 7)).astype(np.uint8))

    def get(self, index: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which of these documents are on."""
        return (self._bytes[index >> 3] >> (index & 7)) & 1 == 1

    def __getitem__(self, index: int) -> bool:
        """Return whether one document is on."""
        return bool(self._bytes[index >> 3] >> (index & 7) & 1)

    def __len__(self) -> int:
        """Return how many documents are on."""
        return int(np.bitwise_count(self._bytes).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two documents that say the same or nearly.

    Attributes:
        index: the later one.
        first: the earlier one.
        similarity: estimated Jaccard similarity of their stretches, 1 for equal documents (and for some others).
        exact: they are equal.
    """

    index: int
    first: int
    similarity: float = 1.0
    exact: bool = False


class ExactDuplicates:
    """Finds documents that repeat an earlier one word for word.

    Args:
        folder: for temporary files.
    """

    def __init__(self, folder: Path) -> None:
        self._parts = _Parts(folder, "exact", 256)
        self._count = 0

    def add(self, content: bytes) -> None:
        """Take in the content hash of the next document."""
        self._parts.write(content[0], content[:16] + self._count.to_bytes(8, "little"))
        self._count += 1

    def finish(self, *, examples: int) -> tuple[Flags, list[Pair]]:
        """Return (which documents repeat an earlier one, the first few pairs)."""
        found, pairs = Flags(self._count), []
        for content in self._parts.read():
            record = np.frombuffer(content, dtype=_EXACT)
            record = record[np.lexsort((record["index"], record["tail"], record["head"]))]
            index, first = _runs(record[["head", "tail"]], record["index"])
            found.set(index)
            pairs += [
                Pair(index=int(a), first=int(b), exact=True)
                for a, b in zip(index[:examples], first[:examples], strict=True)
            ]
            pairs = sorted(pairs, key=lambda pair: pair.index)[:examples]
        return found, pairs


class NearDuplicates:
    """Finds documents that resemble an earlier one.

    Args:
        folder: for temporary files.
        threshold: least estimated similarity, in (0, 1].
    """

    def __init__(self, folder: Path, threshold: float) -> None:
        self.threshold = threshold
        self._folder = folder
        self._path = folder / "sketches"
        self._file = self._path.open("wb", buffering=1 << 20)
        self._count = 0

    def add(self, texts: Sequence[bytes]) -> None:
        """Take in the next documents, as bytes (see `normalised`)."""
        self._file.write(sketches(texts).tobytes())
        self._count += len(texts)

    def finish(self, *, skip: Flags, examples: int) -> tuple[Flags, list[Pair]]:
        """Return (which documents resemble an earlier one, the first few pairs); those in `skip` are left out."""
        self._file.close()
        found, pairs = Flags(self._count), []
        with self._path.open("rb") as stored:
            for band in range(BANDS):
                for index, first in self._candidates(band, skip):
                    fresh = ~found.get(index)
                    index, first = index[fresh], first[fresh]
                    similarity = _agreement(stored.fileno(), index, first)
                    near = similarity >= self.threshold
                    found.set(index[near])
                    new = zip(index[near][:examples], first[near][:examples], similarity[near][:examples], strict=True)
                    pairs += [Pair(index=int(a), first=int(b), similarity=float(each)) for a, b, each in new]
                    pairs = sorted(pairs, key=lambda pair: pair.index)[:examples]
        self._path.unlink()
        return found, pairs

    def _candidates(self, band: int, skip: Flags) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield (document, earlier document) whose sketches agree in a band, partition after partition."""
        parts = _Parts(self._folder, f"band{band}", -(-self._count * _KEYED.itemsize // _PARTITION_BYTES) or 1)
        start = 0
        with self._path.open("rb") as stored:
            while content := stored.read(_SKETCH_BYTES << 13):
                keys = np.frombuffer(content, dtype=np.uint64).reshape(-1, BANDS)[:, band]
                record = np.empty(len(keys), dtype=_KEYED)
                record["key"], record["index"] = keys, np.arange(start, start + len(keys))
                start += len(keys)
                record = record[~skip.get(record["index"])]
                part = record["key"] % np.uint64(parts.count)
                for number in range(parts.count):
                    parts.write(number, record[part == number].tobytes())
        for content in parts.read():
            record = np.frombuffer(content, dtype=_KEYED)
            record = record[np.lexsort((record["index"], record["key"]))]
            yield _runs(record["key"], record["index"])


class _Parts:
    """Temporary files into which records are dealt; each is read, and removed, by itself."""

    def __init__(self, folder: Path, name: str, count: int) -> None:
        self.count = count
        self._paths = [folder / f"{name}-{number:05d}" for number in range(count)]
        self._waiting: list[list[bytes]] = [[] for _ in range(count)]
        self._bytes = 0

    def write(self, part: int, content: bytes) -> None:
        """Append records to a file."""
        self._waiting[part].append(content)
        self._bytes += len(content)
        if self._bytes >= _PARTITION_BYTES:
            self._flush()

    def read(self) -> Iterator[bytes]:
        """Yield the content of each file."""
        self._flush()
        for path in self._paths:
            if path.exists():
                content = path.read_bytes()
                path.unlink()
                yield content

    def _flush(self) -> None:
        # Opened anew each time: thousands of open files would exceed what a process may have.
        for path, waiting in zip(self._paths, self._waiting, strict=True):
            if waiting:
                with path.open("ab") as file:
                    file.write(b"".join(waiting))
                waiting.clear()
        self._bytes = 0


def _runs(key: NDArray[Any], index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (index, first index of its run) of all but the first in runs of equal keys; keys are sorted."""
    if len(key) < 2:
        return index[:0], index[:0]
    again = key[1:] == key[:-1]
    begin = np.maximum.accumulate(np.where(np.concatenate([[True], ~again]), np.arange(len(key)), 0))
    later = np.flatnonzero(again) + 1
    return index[later], index[begin[later]]


def _agreement(stored: int, index: NDArray[np.int64], first: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of bins in which the sketches of each pair agree."""
    same = np.empty(len(index))
    for start in range(0, len(index), 1 << 14):
        both = [_sketches_at(stored, each[start : start + (1 << 14)]) for each in (index, first)]
        same[start : start + (1 << 14)] = (both[0] == both[1]).mean(axis=1)
    return same


def _sketches_at(stored: int, index: NDArray[np.int64]) -> NDArray[np.uint16]:
    content = b"".join(os.pread(stored, _SKETCH_BYTES, number * _SKETCH_BYTES) for number in index.tolist())
    return np.frombuffer(content, dtype=np.uint16).reshape(-1, BINS)


def normalised(text: str) -> bytes:
    """Return the bytes that are compared: lower case, single spaces."""
    return " ".join(text.lower().split()).encode("utf-8", errors="replace")


def sketches(texts: Sequence[bytes]) -> NDArray[np.uint16]:
    """Return the sketch of each text, uint16 [n, BINS]; equal entries of two sketches estimate their similarity."""
    smallest = np.full((len(texts), BINS), _EMPTY)
    padded = [text.ljust(GRAM, b"\0") for text in texts]
    start = 0
    while start < len(padded):
        end, size = start + 1, len(padded[start])
        while end < len(padded) and size + len(padded[end]) <= _STRIDE:
            size += len(padded[end])
            end += 1
        if size <= _STRIDE:
            _lower_all(smallest[start:end], padded[start:end])
        else:
            for begin in range(0, size - GRAM + 1, _STRIDE):
                _lower(smallest[start], _gram_hashes(padded[start][begin : begin + _STRIDE + GRAM - 1]))
        start = end
    return (_filled(smallest) & np.uint64(0xFFFF)).astype(np.uint16)


def _lower_all(smallest: Words, texts: list[bytes]) -> None:
    """Lower the bins of many short texts: hashed at once, which is much faster; stretches across two are left out."""
    hashes, begin = _gram_hashes(b"".join(texts)), 0
    for number, text in enumerate(texts):
        _lower(smallest[number], hashes[begin : begin + len(text) - GRAM + 1])
        begin += len(text)


def _gram_hashes(content: bytes) -> Words:
    """Return a hash of each stretch of GRAM bytes, built by doubling: 2, 4, 8, 16 bytes."""
    hashes = np.frombuffer(content, dtype=np.uint8).astype(np.uint64) + np.uint64(1)
    width = 1
    for factor in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5):
        hashes = hashes[:-width] * np.uint64(factor) + hashes[width:]
        hashes ^= hashes >> np.uint64(29)
        width *= 2
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    return hashes ^ (hashes >> np.uint64(32))


def _lower(smallest: Words, hashes: Words) -> None:
    """Lower the smallest hash of each bin (the first 6 bits) where there is a smaller one."""
    hashes.sort()
    place = np.searchsorted(hashes, _EDGES)
    lowest = hashes[np.minimum(place, len(hashes) - 1)]
    # The next hash may be of a later bin, or, behind the last one, of an earlier bin.
    np.minimum(smallest, lowest, out=smallest, where=(lowest >> np.uint64(58)) == _BIN)


def _filled(smallest: Words) -> Words:
    """Return the sketches with each empty bin filled from the next full one, marked by its distance."""
    filled = smallest.copy()
    for distance in range(1, BINS):
        empty = filled == _EMPTY
        if not empty.any():
            break
        other = np.roll(smallest, -distance, axis=1)
        use = empty & (other != _EMPTY)
        filled[use] = other[use] + np.uint64(distance * 0x9E3779B97F4A7C15 & (2**64 - 1))
    return filled
