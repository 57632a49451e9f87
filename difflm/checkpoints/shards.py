"""Writing safetensors piece by piece: the headers are laid out first, then bytes go to their places in the files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor

from difflm.checkpoints.buffers import pieces
from difflm.checkpoints.fields import write_json
from difflm.checkpoints.folders import require_space
from difflm.checkpoints.hf import DTYPES, INDEX_FILE, MAX_SHARD_BYTES, SINGLE_FILE

_CODES = {dtype: code for code, dtype in DTYPES.items()}
# The order of the reference writer: every tensor lies at a multiple of its element's size.
_ORDER = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor that will be written: its name on disk, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """A weight file before it is written.

    Attributes:
        file: its name.
        entries: its tensors, as they lie in it.
        header: its first bytes, up to the first tensor.
    """

    file: str
    entries: tuple[Entry, ...]
    header: bytes

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(each.size for each in self.entries)


class Ledger(Protocol):
    """Remembers which files are finished, so that an interrupted write goes on after the last of them."""

    def expect(self, shards: Sequence[Shard]) -> None:
        """Take note of everything that will be there in the end."""
        ...

    def has(self, file: str) -> bool:
        """Return whether a file was finished before, and is as it was."""
        ...

    def wrote(self, count: int) -> None:
        """Count bytes that were written."""
        ...

    def finished(self, path: Path) -> None:
        """Enter a file whose every byte is written."""
        ...


def plan_shards(
    entries: Iterable[Entry], *, max_shard_bytes: int = MAX_SHARD_BYTES, indexed: bool = False
) -> list[Shard]:
    """Return the files that hold the entries, in their order: `model.safetensors`, or numbered shards.

    Args:
        entries: in the order in which they come.
        max_shard_bytes: largest file, bytes of tensors; a single tensor may exceed it.
        indexed: number the file even if it is the only one.
    """
    groups: list[list[Entry]] = [[]]
    held = 0
    for entry in entries:
        if groups[-1] and held + entry.size > max_shard_bytes:
            groups.append([])
            held = 0
        groups[-1].append(entry)
        held += entry.size
    if len(groups) == 1 and not indexed:
        return [_shard(SINGLE_FILE, groups[0])]
    count = len(groups)
    return [_shard(f"model-{number:05d}-of-{count:05d}.safetensors", each) for number, each in enumerate(groups, 1)]


def write_safetensors(
    folder: Path, shards: Sequence[Shard], pieces: ShardStream, *, ledger: Ledger | None = None
) -> None:
    """Write planned files, and the index of numbered ones, holding one piece of a tensor at a time.

    Args:
        folder: an existing folder.
        shards: from `plan_shards`.
        pieces: called with the writer; puts every tensor that the writer wants.
        ledger: knows the files that are finished already; None: none is.

    Raises:
        CheckpointError: too little space on the disk.
        OSError: a file cannot be written.
    """
    if ledger:
        ledger.expect(shards)
    missing = [shard for shard in shards if not (ledger and ledger.has(shard.file))]
    require_space(folder, sum(shard.size for shard in missing))
    with ShardWriter(folder, missing, ledger) as writer:
        pieces(writer)
    if [shard.file for shard in shards] == [SINGLE_FILE]:
        return
    weight_map = {entry.name: shard.file for shard in shards for entry in shard.entries}
    total = sum(entry.size for shard in shards for entry in shard.entries)
    write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


class ShardWriter:
    """Puts pieces of tensors into their files, in any order; a context that leaves no file open.

    Args:
        folder: where to.
        shards: files to write.
        ledger: is told of every file that is complete.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], ledger: Ledger | None = None) -> None:
        self.folder, self.ledger = folder, ledger
        self._places: dict[str, tuple[Shard, Entry, int]] = {}
        for shard in shards:
            start = len(shard.header)
            for entry in shard.entries:
                self._places[entry.name] = (shard, entry, start)
                start += entry.size
        self._left = {shard.file: shard.size for shard in shards}
        self._open: dict[str, FileIO] = {}
        for shard in shards:
            if not any(entry.size for entry in shard.entries):
                self._close(shard, self._opened(shard))

    def wants(self, name: str) -> bool:
        """Return whether a tensor is to be written."""
        return name in self._places

    def put(self, name: str, tensor: Tensor, row: int = 0) -> None:
        """Write a tensor, or some of its rows.

        Args:
            name: of the whole tensor; one that is not wanted is left out.
            tensor: all of it, or rows of its first dimension; cast to the planned dtype.
            row: number of the first of them.

        Raises:
            OSError: the file cannot be written.
        """
        if name not in self._places:
            return
        shard, entry, start = self._places[name]
        assert tensor.shape[1:] == entry.shape[1:], f"{name} is {tensor.shape}, planned was {entry.shape}"
        offset = row * (entry.size // max(entry.shape[0], 1)) if entry.shape else 0
        size = tensor.numel() * entry.dtype.itemsize
        assert offset + size <= entry.size, f"{name} has more rows than were planned"
        if not entry.size:
            return
        file = self._opened(shard)
        for piece in pieces(tensor.detach()):
            content = piece.to("cpu", entry.dtype).contiguous().reshape(-1).view(torch.uint8).numpy().data
            _write_at(file, start + offset, content)
            offset += len(content)
        self._left[shard.file] -= size
        if self.ledger:
            self.ledger.wrote(size)
        if self._left[shard.file] == 0:
            self._close(shard, file)

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what is open."""
        for file in self._open.values():
            file.close()
        assert kind or not any(self._left.values()), f"not written: {[file for file, n in self._left.items() if n]}"

    def _opened(self, shard: Shard) -> FileIO:
        if shard.file not in self._open:
            file = self._open[shard.file] = (self.folder / shard.file).open("wb", buffering=0)
            file.truncate(shard.size)
            _write_at(file, 0, memoryview(shard.header))
            self._left[shard.file] -= len(shard.header)
            if self.ledger:
                self.ledger.wrote(len(shard.header))
        return self._open[shard.file]

    def _close(self, shard: Shard, file: FileIO) -> None:
        file.close()
        del self._open[shard.file]
        if self.ledger:
            self.ledger.finished(self.folder / shard.file)


class ShardStream(Protocol):
    """Puts tensors into a writer, asking it which it wants."""

    def __call__(self, writer: ShardWriter) -> None:
        """Put them all."""
        ...


def _shard(file: str, entries: Sequence[Entry]) -> Shard:
    placed = tuple(sorted(entries, key=lambda each: (_ORDER.index(each.dtype), each.name)))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for each in placed:
        header[each.name] = {
            "dtype": _CODES[each.dtype],
            "shape": list(each.shape),
            "data_offsets": [start, start + each.size],
        }
        start += each.size
    assert len(header) == len(placed) + 1, "a name stands twice"
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return Shard(file, placed, len(text).to_bytes(8, "little") + text)


def _write_at(file: FileIO, start: int, content: memoryview) -> None:
    """Write bytes until all are: one call takes at most 2 GB on Linux, or what the disk has room for."""
    file.seek(start)
    done = 0
    while done < len(content):
        done += file.write(content[done:])
