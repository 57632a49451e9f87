"""Safetensors folders: strict, streaming reading and writing. Pickle files are never opened."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from difflm.checkpoints.fields import one_line, read_json, write_json
from difflm.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_BYTES = 4_000_000_000
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class TensorFact:
    """What the header of a weight file says about one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: str


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
    _handles: dict[str, Any] = field(repr=False)

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU, in its stored dtype, mapped from the file."""
        return self._handles[self.facts[name].file].get_tensor(name)


def open_safetensors(folder: Path) -> SafetensorsFolder:
    """Open the weights of an HF folder and read the headers.

    Raises:
        CheckpointError: no safetensors, a missing or damaged shard, an index that points out of the folder or
            disagrees with the shards, or tensors that are not floating point.
    """
    files, owner = _locate(folder)
    handles: dict[str, Any] = {}
    facts: dict[str, TensorFact] = {}
    for file in files:
        handle = _open(file)
        handles[file.name] = handle
        for name in handle.keys():  # noqa: SIM118 (safe_open is no mapping)
            if name in facts:
                raise CheckpointError(f"{file}: tensor {name} is also in {facts[name].file}; keep one of them")
            view = handle.get_slice(name)
            dtype = _DTYPES.get(view.get_dtype())
            if dtype is None:
                raise CheckpointError(
                    f"{file}: tensor {name} has dtype {view.get_dtype()}; only {', '.join(_DTYPES)} are supported, "
                    "quantised weights are not: use the original ones"
                )
            facts[name] = TensorFact(tuple(view.get_shape()), dtype, file.name)
    if owner is not None:
        _compare_with_index(folder / INDEX_FILE, owner, facts)
    return SafetensorsFolder(folder, files, facts, handles)


def _open(file: Path) -> Any:
    try:
        return safetensors.safe_open(file, framework="pt", device="cpu")
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: damaged or truncated safetensors file ({one_line(error)}); copy it again"
        ) from None


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


def write_safetensors(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write tensors as `model.safetensors`, or as shards with an index where one file would be too large.

    Holds one shard in memory.

    Args:
        folder: an existing folder without weights.
        tensors: names on disk and tensors, written in this order.
        max_shard_bytes: largest shard, bytes; a single tensor may exceed it.
    """
    parts: list[tuple[Path, list[str]]] = []
    shard: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        part = folder / f"model-{len(parts) + 1:05d}.part"
        save_tensors(part, shard)
        parts.append((part, list(shard)))
        shard.clear()

    for name, tensor in tensors:
        count = tensor.numel() * tensor.element_size()
        if shard and size + count > max_shard_bytes:
            flush()
            size = 0
        shard[name] = tensor.detach().cpu().contiguous()
        size, total = size + count, total + count
    flush()
    if len(parts) == 1:
        parts[0][0].rename(folder / SINGLE_FILE)
        return
    weight_map: dict[str, str] = {}
    for number, (part, names) in enumerate(parts, start=1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        part.rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


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
