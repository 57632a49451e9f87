"""manifest.json of a folder: size and sha256 of every file, so that damage is found before anything is read.

The manifest guards itself: its bytes must be exactly what its content is written as, and it holds a hash of that
content. A file cut short or one flipped bit anywhere in the folder is found; files the manifest does not name are no
part of the folder, except weights and JSON files, which a loader might take for one.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from difflm.checkpoints.fields import one_line
from difflm.checkpoints.folders import replace_text, sync
from difflm.checkpoints.hf import file_sha256
from difflm.errors import CheckpointError

MANIFEST = "manifest.json"
FORMAT = 1
_READERS = 4  # files that are hashed at once; hashing leaves the interpreter free
_READ_BY_LOADERS = (".safetensors", ".json", ".gguf")


@dataclass(frozen=True, slots=True)
class FileFact:
    """What a manifest says about one file: its size in bytes and its sha256, hexadecimal."""

    size: int
    sha256: str


def hash_files(files: Iterable[Path], *, root: Path) -> dict[str, FileFact]:
    """Return the facts of files by their path relative to `root`; each is read in pieces, several at once."""
    paths = list(files)
    with ThreadPoolExecutor(_READERS) as pool:
        facts = pool.map(lambda file: FileFact(file.stat().st_size, file_sha256(file)), paths)
        return {path.relative_to(root).as_posix(): fact for path, fact in zip(paths, facts, strict=True)}


def write_manifest(folder: Path) -> None:
    """Record every file of a complete folder; the last thing that is written into it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    replace_text(folder / MANIFEST, _rendered(hash_files(files, root=folder)))


def seal_folder(folder: Path) -> None:
    """Write the manifest of a flushed folder, then read every file back from the disk and compare.

    Raises:
        CheckpointError: the disk does not return what was written.
    """
    write_manifest(folder)
    if sys.platform == "linux":
        for path in (each for each in folder.rglob("*") if each.is_file()):
            handle = os.open(path, os.O_RDONLY)
            try:
                # Out of the page cache: what is read next comes from the disk.
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)
    verify_folder(folder)


def read_manifest(folder: Path) -> dict[str, FileFact]:
    """Return the facts of a folder's files.

    Raises:
        CheckpointError: there is no manifest, or it is not as it was written.
    """
    path = folder / MANIFEST
    try:
        content = unguarded(path.read_bytes())
        files = file_facts(content["files"])
        intact = content["format"] == FORMAT
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; the folder is incomplete") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged ({one_line(error)})") from None
    if not intact:
        raise CheckpointError(f"{path}: damaged (it is not as it was written)")
    return files


def file_facts(stored: Mapping[str, Any]) -> dict[str, FileFact]:
    """Return facts of files as JSON holds them; KeyError or TypeError for what are none."""
    return {name: FileFact(fact["size"], fact["sha256"]) for name, fact in stored.items()}


def verify_folder(folder: Path, *, spare: Collection[str] = ()) -> dict[str, FileFact]:
    """Read every file of a folder and compare it with the manifest; return the facts.

    Args:
        folder: with a manifest.
        spare: files that may lie there without being recorded.

    Raises:
        CheckpointError: the first file that is missing, cut short, changed, unreadable or not recorded.
    """
    facts = read_manifest(folder)
    with ThreadPoolExecutor(_READERS) as pool:
        for _ in pool.map(verify_file, (folder / name for name in facts), facts.values()):
            pass
    for file in sorted(folder.iterdir()):
        known = file.name in facts or file.name in (MANIFEST, *spare) or file.name.startswith(".")
        if file.suffix in _READ_BY_LOADERS and not known:
            raise CheckpointError(f"{file}: not part of the checkpoint; move it elsewhere")
    return facts


def verify_file(file: Path, fact: FileFact) -> None:
    """Read a file and compare it with what was written.

    Raises:
        CheckpointError: it is missing, cut short, changed or unreadable.
    """
    try:
        size = file.stat().st_size
        if size != fact.size:
            raise CheckpointError(f"{file}: damaged (it has {size} bytes, {fact.size} were written)")
        if file_sha256(file) != fact.sha256:
            raise CheckpointError(f"{file}: damaged (its content is not what was written)")
    except FileNotFoundError:
        raise CheckpointError(f"{file}: missing") from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or one_line(error)})") from None


def drop_file(folder: Path, name: str) -> None:
    """Delete a file of a folder that stays verified: the manifest forgets the file before it goes."""
    facts = read_manifest(folder)
    if name in facts:
        replace_text(folder / MANIFEST, _rendered({each: fact for each, fact in facts.items() if each != name}))
    (folder / name).unlink(missing_ok=True)
    sync(folder)


def _rendered(files: Mapping[str, FileFact]) -> str:
    return guarded({"format": FORMAT, "files": {name: asdict(fact) for name, fact in sorted(files.items())}})


def guarded(content: Mapping[str, Any]) -> str:
    """Return a JSON object as text, with a hash of itself."""
    digest = hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=1) + "\n"


def unguarded(text: bytes) -> dict[str, Any]:
    """Return the object in a text of `guarded`.

    Raises:
        ValueError: the text is not, byte for byte, what the object is written as.
    """
    content = json.loads(text.decode("ascii"))
    if not isinstance(content, dict):
        raise ValueError("it holds no object")  # noqa: TRY004 (bad content, whatever its kind)
    content.pop("sha256", None)
    if guarded(content).encode("ascii") != text:
        raise ValueError("it is not as it was written")
    return content
