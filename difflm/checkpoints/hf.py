"""Safetensors folders, strictly checked and read tensor by tensor. Pickle files are never opened."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path, PureWindowsPath
from typing import IO, Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from difflm.checkpoints.buffers import buffer
from difflm.checkpoints.fields import one_line, read_json
from difflm.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_BYTES = 4_000_000_000
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class TensorFact:
    """What the header of a weight file says about one tensor; `start` is where its bytes begin in the file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: str
    start: int = 0

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(slots=True)
class SafetensorsFolder:
    """Weights of an HF folder, opened but not read.

    Attributes:
        folder: where they lie.
        files: weight files.
        facts: header of every tensor.
    """

    folder: Path
    files: tuple[Path, ...]
    facts: dict[str, TensorFact]
    _identities: dict[str, tuple[int, ...]] = field(repr=False)

    def read(self, name: str, rows: range | None = None) -> Tensor:
        """Return one tensor on the CPU, in its stored dtype, in memory of its own.

        The file is read, not mapped: pages of a mapped file count as the process's memory until it is closed, which
        over a whole checkpoint is all of it.

        Args:
            name: of the tensor.
            rows: of its first dimension, one after the other; None: all.

        Raises:
            CheckpointError: the file cannot be read, or is not the one that was opened.
        """
        fact = self.facts[name]
        path, shape, start = self.folder / fact.file, fact.shape, fact.start
        if rows is not None:
            start += rows.start * (fact.size // max(shape[0], 1))
            shape = (len(rows), *shape[1:])
        content = buffer((math.prod(shape) * fact.dtype.itemsize,), torch.uint8)
        try:
            with path.open("rb", buffering=0) as file:
                if _identity(file) != self._identities[fact.file]:
                    raise CheckpointError(f"{path}: was changed while it was read; start again with files at rest")
                _fill(file, start, content.numpy().data)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from None
        return content.view(fact.dtype).reshape(shape)


def open_safetensors(folder: Path) -> SafetensorsFolder:
    """Open the weights of an HF folder and read the headers.

    Raises:
        CheckpointError: no safetensors, a missing or damaged shard, an index that points out of the folder or
            disagrees with the shards, or tensors that are not floating point.
    """
    files, owner = _locate(folder)
    facts: dict[str, TensorFact] = {}
    identities: dict[str, tuple[int, ...]] = {}
    for file in files:
        found, identities[file.name] = _read_header(file)
        for name, fact in found.items():
            if name in facts:
                raise CheckpointError(f"{file}: tensor {name} is also in {facts[name].file}; keep one of them")
            facts[name] = fact
    if owner is not None:
        _compare_with_index(folder / INDEX_FILE, owner, facts)
    return SafetensorsFolder(folder, files, facts, identities)


def _read_header(path: Path) -> tuple[dict[str, TensorFact], tuple[int, ...]]:
    """Return the tensors of a file, and what tells it from another of its name."""
    try:
        # The library's own check: lengths, offsets and shapes fit each other and the size of the file.
        with safetensors.safe_open(path, framework="pt", device="cpu"):
            pass
        with path.open("rb") as file:
            identity, length = _identity(file), int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length), object_pairs_hook=_unique)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: damaged or truncated safetensors file ({one_line(error)}); copy it again"
        ) from None
    header.pop("__metadata__", None)
    facts = {}
    for name, entry in header.items():
        dtype = DTYPES.get(entry["dtype"])
        if dtype is None:
            raise CheckpointError(
                f"{path}: tensor {name} has dtype {entry['dtype']}; only {', '.join(DTYPES)} are supported, "
                "quantised weights are not: use the original ones"
            )
        facts[name] = TensorFact(tuple(entry["shape"]), dtype, path.name, 8 + length + entry["data_offsets"][0])
    return facts, identity


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} stands twice in the header")
    return found


def _identity(file: IO[bytes]) -> tuple[int, ...]:
    facts = os.fstat(file.fileno())
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def _fill(file: FileIO, start: int, content: memoryview) -> None:
    """Read bytes until `content` is full: one call returns at most 2 GB on Linux."""
    file.seek(start)
    done = 0
    while done < len(content):
        count = file.readinto(content[done:])
        if not count:
            raise OSError("the file is shorter than its header says")
        done += count


def _locate(folder: Path) -> tuple[tuple[Path, ...], dict[str, str] | None]:
    """Return the weight files and, for a sharded folder, the index (tensor name -> file name)."""
    index, single = folder / INDEX_FILE, folder / SINGLE_FILE
    if index.is_file():
        owner = _read_index(index)
        names = sorted(set(owner.values()))
        if single.is_file() and SINGLE_FILE not in names:
            raise CheckpointError(f"{folder}: holds both {SINGLE_FILE} and {INDEX_FILE}; remove the one not meant")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{index}: names {', '.join(missing)}, not in the folder; copy the missing shard(s) there"
            )
        return tuple(folder / name for name in names), owner
    if single.is_file():
        return (single,), None
    raise CheckpointError(_no_weights(folder))


def _no_weights(folder: Path) -> str:
    found = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if found:
        return (
            f"{folder}: only pickle files ({', '.join(found[:3])}); they can run code and are never opened, "
            "convert them to safetensors"
        )
    stray = sorted(path.name for path in folder.glob("*.safetensors"))
    if stray:
        return (
            f"{folder}: no {INDEX_FILE} for {', '.join(stray[:3])}; copy it, or rename a single file to {SINGLE_FILE}"
        )
    return f"{folder}: no weights; expected {SINGLE_FILE}, {INDEX_FILE} or one .gguf file"


def _read_index(index: Path) -> dict[str, str]:
    owner = read_json(index).get("weight_map")
    if not isinstance(owner, dict) or not owner or not all(isinstance(file, str) for file in owner.values()):
        raise CheckpointError(f"{index}: weight_map is missing or not an object of file names; copy the index again")
    for file in sorted(set(owner.values())):
        # Windows' rules know both separators and drives.
        if PureWindowsPath(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: weight_map names {file!r}; expected a plain *.safetensors name in the same folder"
            )
    return owner


def _compare_with_index(index: Path, owner: Mapping[str, str], facts: Mapping[str, TensorFact]) -> None:
    wrong = sorted(name for name, file in owner.items() if name not in facts or facts[name].file != file)
    extra = sorted(set(facts) - set(owner))
    if wrong or extra:
        parts = [f"not where the index says: {listed(wrong)}"] if wrong else []
        parts += [f"in a shard but not in the index: {listed(extra)}"] if extra else []
        raise CheckpointError(f"{index}: {'; '.join(parts)}; index and shards belong to different checkpoints")


def listed(names: Iterable[object], limit: int = 8) -> str:
    """Return the first names, and how many more there are."""
    every = [str(name) for name in names]
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, contiguous and on the CPU, as one safetensors file.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:  # a full disk, as safetensors reports it
        raise OSError(one_line(error)) from None


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
