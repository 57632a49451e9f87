"""Output folders whose writing goes on where it was interrupted.

Weight files are written into a folder beside the target and entered into a manifest there as they are finished, with
size and sha256. The manifest also holds what was asked for: version, options, sha256 of every file that is read. The
same request finds the folder, verifies what is finished and writes the rest; another one is refused. One process
writes to a target at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save

import difflm
from difflm.checkpoints.fields import one_line, read_optional_json
from difflm.checkpoints.folders import publish_folder, replace_text, require_free, sync
from difflm.checkpoints.hf import file_sha256, listed
from difflm.checkpoints.lock import FileLock, InUseError
from difflm.checkpoints.manifest import MANIFEST, FileFact, file_facts, guarded, read_manifest, unguarded, verify_file
from difflm.checkpoints.shards import Shard
from difflm.checkpoints.source import Checkpoint
from difflm.errors import CheckpointError

PROGRESS = ".difflm-progress.json"
FORMAT = 1
_READERS = 4  # files that are hashed at once; hashing leaves the interpreter free


class Observer(Protocol):
    """Watches a long copy; the calls come from one thread."""

    def phase(self, name: str, *, size: int, files: int, done: int = 0, files_done: int = 0) -> None:
        """Begin a part of the work.

        Args:
            name: what is done, e.g. "writing".
            size: of all of it, bytes.
            files: how many.
            done: bytes that need not be done again.
            files_done: files of which that is so.
        """
        ...

    def advance(self, count: int, *, files: int = 0) -> None:
        """Count bytes, and files with which they are complete."""
        ...

    def note(self, text: str) -> None:
        """Tell something that the user should know."""
        ...


class Quiet:
    """An observer for which notes are Python warnings, and nothing else is told."""

    def phase(self, name: str, *, size: int, files: int, done: int = 0, files_done: int = 0) -> None:
        """Do nothing."""

    def advance(self, count: int, *, files: int = 0) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Warn."""
        warnings.warn(text, stacklevel=2)


class Stage:
    """The folder of a target that is being written, and the ledger of its weight files.

    Args:
        target: the folder to come.
        fresh: throw away what an interrupted attempt left.
        observer: is told of progress.
    """

    def __init__(self, target: Path, *, fresh: bool, observer: Observer) -> None:
        self.target, self.fresh, self.observer = target, fresh, observer
        self.folder = target.with_name(f".{target.name}.partial")
        self.finished_files: dict[str, FileFact] = {}
        self._request: dict[str, Any] = {}
        self._begun = False

    def begin(self, command: str, options: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        """Open the folder: a new one, or what an interrupted attempt at the same left, verified.

        Args:
            command: what writes.
            options: everything that decides about the result beside the inputs; JSON values.
            inputs: name and sha256 of every file that is read.

        Raises:
            CheckpointError: an interrupted attempt at something else lies there.
            OSError: the folder cannot be written.
        """
        self._request = unguarded(
            guarded(
                {"command": command, "version": difflm.__version__, "options": dict(options), "inputs": dict(inputs)}
            ).encode("ascii")
        )
        if self.fresh and self.folder.exists():
            shutil.rmtree(self.folder)
        if self.folder.exists():
            self.finished_files = self._verified(self._recorded())
        self._begun = True
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.folder.iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in self.finished_files:
                path.unlink()
        self._record()

    def expect(self, shards: Sequence[Shard]) -> None:
        """Take note of the weight files; forget finished ones that are none of them."""
        sizes = {shard.file: shard.size for shard in shards}
        kept = {name: fact for name, fact in self.finished_files.items() if sizes.get(name) == fact.size}
        for name in set(self.finished_files) - set(kept):
            (self.folder / name).unlink()
        self.finished_files = kept
        if kept:
            self.observer.note(
                f"{self.target}: continuing an interrupted attempt, {len(kept)} of {len(sizes)} weight files are "
                "finished and intact"
            )
        done = sum(fact.size for fact in kept.values())
        self.observer.phase("writing", size=sum(sizes.values()), files=len(sizes), done=done, files_done=len(kept))

    def has(self, file: str) -> bool:
        """Return whether a weight file is finished."""
        return file in self.finished_files

    def wrote(self, count: int) -> None:
        """Count bytes."""
        self.observer.advance(count)

    def finished(self, path: Path) -> None:
        """Flush a complete weight file and enter it into the manifest."""
        sync(path)
        self.finished_files[path.name] = FileFact(path.stat().st_size, file_sha256(path))
        self._record()
        self.observer.advance(0, files=1)

    def publish(self) -> None:
        """Give the folder its name."""
        publish_folder(self.folder, self.target)
        # Until here it could be taken up again; now the name says that it is complete, and the file says nothing.
        (self.target / PROGRESS).unlink()
        sync(self.target)

    def abandon(self) -> str:
        """Keep what is finished, or nothing; return what the user should know, "" where nothing is left.

        What another attempt left is not touched.
        """
        if not self._begun:
            return ""
        if not self.finished_files:
            shutil.rmtree(self.folder, ignore_errors=True)
            return ""
        return f"finished weight files kept in {self.folder}: {len(self.finished_files)}, the same command continues"

    def _recorded(self) -> dict[str, FileFact]:
        """Return the finished files of an earlier attempt at the same.

        Raises:
            CheckpointError: it was another one, or its manifest is of no use.
        """
        path, anew = self.folder / PROGRESS, "start anew with --fresh (fresh=True in Python)"
        where = f"{self.target}: an interrupted attempt lies in {self.folder}"
        try:
            content = unguarded(path.read_bytes())
            request, files = dict(content["request"]), file_facts(content["files"])
        except FileNotFoundError:
            if all(each.name.startswith(f".{PROGRESS}") for each in self.folder.iterdir()):
                return {}
            raise CheckpointError(f"{where}, but its manifest {PROGRESS} is missing; {anew}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{where}, but its manifest {PROGRESS} is damaged ({one_line(error)}); {anew}"
            ) from None
        if differing := _differences(request, self._request):
            raise CheckpointError(f"{where}, of something else: {listed(differing, 4)}; repeat what it was, or {anew}")
        return files

    def _verified(self, recorded: Mapping[str, FileFact]) -> dict[str, FileFact]:
        """Return the files that are as they were written; tell of the others."""
        found: dict[str, FileFact] = {}
        if recorded:
            size = sum(fact.size for fact in recorded.values())
            self.observer.phase("verifying what is finished", size=size, files=len(recorded))
        with ThreadPoolExecutor(_READERS) as pool:
            reports = pool.map(self._problem, recorded.items())
            for (name, fact), problem in zip(recorded.items(), reports, strict=True):
                self.observer.advance(fact.size, files=1)
                if problem:
                    self.observer.note(f"{problem}; it is written again")
                else:
                    found[name] = fact
        return found

    def _problem(self, file: tuple[str, FileFact]) -> str:
        try:
            verify_file(self.folder / file[0], file[1])
        except CheckpointError as error:
            return str(error)
        return ""

    def _record(self) -> None:
        files = {name: asdict(fact) for name, fact in sorted(self.finished_files.items())}
        content = {"format": FORMAT, "request": self._request, "files": files}
        replace_text(self.folder / PROGRESS, guarded(content))


@contextmanager
def resumable_folder(target: Path, *, fresh: bool = False, observer: Observer | None = None) -> Iterator[Stage]:
    """Yield the stage of a target, to `begin` and to fill; on success it becomes the target.

    Whatever stops the writing (a kill, Ctrl-C, a full disk), finished weight files are kept beside the target.

    Args:
        target: an absent or empty folder.
        fresh: throw away what an interrupted attempt left.
        observer: is told of progress; None: notes are warnings.

    Raises:
        CheckpointError: `target` is not free, cannot be written, or is being written by another process.
    """
    target, watcher = target.absolute(), observer or Quiet()
    require_free(target)
    with _locked(target, watcher):
        require_free(target)  # another process may have finished it meanwhile
        stage = Stage(target, fresh=fresh, observer=watcher)
        try:
            yield stage
            stage.publish()
        except BaseException as error:
            kept = stage.abandon()
            if isinstance(error, OSError):
                reason = error.strerror or one_line(error)
                rest = f"; {kept}" if kept else ""
                raise CheckpointError(
                    f"{target}: cannot be written ({reason}); free space or choose another path{rest}"
                ) from error
            if kept:
                watcher.note(kept)
            raise


def hash_checkpoints(checkpoints: Mapping[str, Checkpoint], observer: Observer) -> dict[str, str]:
    """Return the sha256 of everything that copies of checkpoints are made from, each file read once, in pieces.

    Args:
        checkpoints: by what the names of their files begin with in the result.
        observer: is told of progress.

    Raises:
        CheckpointError: a weight file is not what its own manifest, or the hub, says it is.
    """
    files = {start + name: path for start, each in checkpoints.items() for name, path in each.inputs().items()}
    paths = list(dict.fromkeys(files.values()))
    sizes = [path.stat().st_size for path in paths]
    observer.phase("hashing the source", size=sum(sizes), files=len(paths))
    found: dict[Path, str] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for path, size, digest in zip(paths, sizes, pool.map(file_sha256, paths), strict=True):
            found[path] = digest
            observer.advance(size, files=1)
    for each in checkpoints.values():
        _require_intact(each, found)
    adapters = {
        f"{start}adapter {number}": hashlib.sha256(repr(member.facts).encode() + save(dict(member.tensors))).hexdigest()
        for start, each in checkpoints.items()
        for number, member in enumerate(each.adapter.members if each.adapter else ())
    }
    return {name: found[path] for name, path in files.items()} | adapters


def _require_intact(checkpoint: Checkpoint, hashes: Mapping[Path, str]) -> None:
    """Compare weight files with what was recorded of them where they come from."""
    recorded: Mapping[str, FileFact] = {}
    if (
        not checkpoint.is_gguf
        and {"format", "files", "sha256"} <= read_optional_json(checkpoint.path / MANIFEST).keys()
    ):
        recorded = read_manifest(checkpoint.path)
    for file in checkpoint.weights.files:
        if file.name in recorded and recorded[file.name].sha256 != hashes[file]:
            raise CheckpointError(f"{file}: damaged (its content is not what {MANIFEST} says); copy it again")
        blob = file.resolve()  # the hub's cache names large files by their sha256
        if blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name) and blob.name != hashes[file]:
            raise CheckpointError(f"{file}: damaged (its content is not the hub's); delete {blob} and start again")


@contextmanager
def _locked(target: Path, observer: Observer) -> Iterator[None]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f".{target.name}.lock"))
    except InUseError as error:
        raise CheckpointError(
            f"{target}: {error.holder} is writing it; wait for it or stop it, or choose another path"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written ({error.strerror}); choose another path") from None
    with contextlib.closing(lock):
        if lock.unsupported:
            observer.note(f"{target}: this file system has no locks ({lock.unsupported}); start no second process")
        yield


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between two requests, in words."""
    old, new = _flat(before), _flat(now)
    found = []
    for name in [*new, *(name for name in old if name not in new)]:
        if old.get(name) == new.get(name):
            continue
        if name.startswith("inputs."):
            found.append(f"{name.removeprefix('inputs.')} has another content")
        else:
            found.append(f"{name.removeprefix('options.')} was {old.get(name)!r}, is {new.get(name)!r}")
    return found


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, each in value.items():
        found |= _flat(each, f"{prefix}.{name}" if prefix else str(name))
    return found
