"""A prepared data set: shards of token ids with a manifest of sizes and hashes, written once, read memory-mapped.

Beside `manifest.json` every shard has up to three files: `.tokens` (ids of all documents, one after another),
`.documents` (one record of `store.DOCUMENT` each), `.bits` (only where rows of ids came with labels).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difflm.data.store import DOCUMENT, RecordMaker, Shard, TokenStore
from difflm.data.tokens import TokenDocument
from difflm.errors import DataError

MANIFEST = "manifest.json"
KIND, VERSION = "difflm prepared data", 1
_CHUNK = 1 << 20


@dataclass(slots=True)
class _File:
    """A file that is being written, and what the manifest will say about it."""

    path: Path
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    stream: Any = None

    def write(self, content: bytes) -> None:
        """Append bytes."""
        if self.stream is None:
            self.stream = self.path.open("wb", buffering=_CHUNK)
        self.stream.write(content)
        self.digest.update(content)
        self.size += len(content)

    def close(self) -> dict[str, Any]:
        """Close the file and return its entry of the manifest."""
        if self.stream is not None:
            self.stream.close()
        return {"file": self.path.name, "bytes": self.size, "sha256": self.digest.hexdigest()}


class ShardWriter:
    """Writes the documents of one source and one side of the split, shard after shard.

    Args:
        folder: where the files go.
        stem: how their names begin.
        dtype: type of the ids.
        shard_tokens: a shard ends with the document that reaches this many tokens.
        eos_id, ends: see `RecordMaker`.
        files: names of the source files, in order.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        *,
        dtype: str,
        shard_tokens: int,
        eos_id: int,
        files: Sequence[str],
        ends: Sequence[int] = (),
    ) -> None:
        self.folder, self.stem, self.shard_tokens = folder, stem, shard_tokens
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.totals = {"documents": 0, "tokens": 0, "trainable": 0, "without_eos": 0, "largest_id": -1}
        self.shards: list[dict[str, Any]] = []
        self._maker = RecordMaker(eos_id, ends)
        self._maker.files.update({name: number for number, name in enumerate(files)})
        self._open: dict[str, _File] = {}

    def add(self, document: TokenDocument) -> None:
        """Append a document."""
        if not self._open:
            name = f"{self.stem}-{len(self.shards):05d}"
            self._open = {part: _File(self.folder / f"{name}.{part}") for part in ("tokens", "documents", "bits")}
        token, record, bits = self._maker.make(document)
        ids = np.frombuffer(token, dtype=np.int32)
        self._open["tokens"].write(ids.astype(self.dtype).tobytes())
        self._open["documents"].write(record)
        if bits:
            self._open["bits"].write(bits)
        known = document.trainable
        self.totals["documents"] += 1
        self.totals["tokens"] += len(token)
        self.totals["trainable"] += len(token) - document.num_prompt if known is None else sum(known)
        self.totals["without_eos"] += token[-1] not in self._maker.ends
        self.totals["largest_id"] = max(self.totals["largest_id"], int(ids.max()))
        if self._maker.num_tokens >= self.shard_tokens:
            self._end_shard()

    def finish(self) -> dict[str, Any]:
        """Write what is left and return the side's entry of the manifest."""
        if self._open:
            self._end_shard()
        return {**self.totals, "shards": self.shards}

    def _end_shard(self) -> None:
        written = {part: file.close() for part, file in self._open.items()}
        self.shards.append({part: entry for part, entry in written.items() if entry["bytes"] or part != "bits"})
        self._open = {}
        self._maker.restart()


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `manifest.json`; it carries a hash of itself."""
    body = {"kind": KIND, "version": VERSION, **content}
    text = json.dumps({**body, "sha256": _own_hash(body)}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def is_prepared(path: Path) -> bool:
    """Return whether a path is a folder with the manifest of a prepared data set, be it damaged.

    Other programs call their files manifest.json as well; theirs are data like any other.
    """
    manifest = path / MANIFEST
    if not manifest.is_file():
        return False
    with manifest.open("rb") as file:
        return KIND.encode("ascii") in file.read(1 << 12) or any(path.glob("*.tokens"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedSource:
    """One source of a prepared data set.

    Attributes:
        name: path as it was given to `prepare`.
        weight: its share; None without weights.
        kind: of its documents.
        train, validation: documents of either side.
        notes: what was concluded about its files.
    """

    name: str
    weight: float | None
    kind: str
    train: TokenStore
    validation: TokenStore
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A prepared data set, opened.

    Attributes:
        folder: where it is.
        manifest: content of `manifest.json`.
        sources: in order.
    """

    folder: Path
    manifest: Mapping[str, Any]
    sources: tuple[PreparedSource, ...]


def open_prepared(folder: Path, *, hashes: bool = True) -> Prepared:
    """Open a prepared data set; nothing is read but the manifest, and every file once if hashes are checked.

    Args:
        folder: with `manifest.json`.
        hashes: check the content of every file; sizes always are.

    Raises:
        DataError: names the file that is missing or damaged.
    """
    manifest = _read_manifest(folder / MANIFEST)
    dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
    sources = []
    for entry in manifest["sources"]:
        files = tuple(file["path"] for file in entry["files"])
        sides = [
            TokenStore([_open_shard(folder, shard, dtype, files, hashes) for shard in entry[side]["shards"]])
            for side in ("train", "validation")
        ]
        sources.append(
            PreparedSource(
                name=entry["path"],
                weight=entry["weight"],
                kind=entry["documents"],
                train=sides[0],
                validation=sides[1],
                notes=tuple(file["found"] for file in entry["files"]),
            )
        )
    return Prepared(folder=folder, manifest=manifest, sources=tuple(sources))


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a folder written by difflm prepare") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); it is damaged, prepare the data again") from None
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise DataError(f"{path}: not the manifest of prepared data; give a folder written by difflm prepare")
    if manifest.get("version") != VERSION:
        raise DataError(f"{path}: version {manifest.get('version')!r}, this difflm reads {VERSION}; prepare again")
    claimed = manifest.pop("sha256", None)
    if claimed != _own_hash(manifest):
        raise DataError(f"{path}: does not fit its own sha256; it was changed or damaged, prepare the data again")
    return manifest


def _own_hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode("ascii")).hexdigest()


def _open_shard(
    folder: Path, entry: Mapping[str, Any], dtype: np.dtype[Any], files: tuple[str, ...], hashes: bool
) -> Shard:
    token, document = (
        _mapped(folder, entry[part], kind, hashes) for part, kind in (("tokens", dtype), ("documents", DOCUMENT))
    )
    bits = _mapped(folder, entry["bits"], np.dtype(np.uint8), hashes) if "bits" in entry else np.empty(0, np.uint8)
    return Shard(token=token, document=document, bits=bits, files=files)


def _mapped(folder: Path, entry: Mapping[str, Any], dtype: np.dtype[Any], hashes: bool) -> NDArray[Any]:
    path = folder / entry["file"]
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise DataError(
                f"{path}: has {size} bytes, the manifest says {entry['bytes']}; the shard is damaged, prepare again"
            )
        if hashes and file_hash(path) != entry["sha256"]:
            raise DataError(f"{path}: differs from the sha256 in the manifest; the shard is damaged, prepare again")
        return np.memmap(path, dtype=dtype, mode="r")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); the shard is missing, prepare again") from None


def file_hash(path: Path) -> str:
    """Return the sha256 of a file's bytes, read as a stream."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
