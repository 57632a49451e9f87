"""Output folders and files: written aside, flushed and renamed, so that nothing half-written has the final name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from difflm.checkpoints.fields import one_line
from difflm.errors import CheckpointError

_MARGIN_BYTES = 2**25  # tokenizer files, configuration, card


def require_free(target: Path) -> None:
    """Check that `target` is absent or an empty folder.

    Raises:
        CheckpointError: something is there already.
    """
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        kind = "folder is not empty" if target.is_dir() else "is not a folder"
        raise CheckpointError(f"{target}: output {kind}; choose another path or remove it")


def require_space(folder: Path, needed: int) -> None:
    """Check that the disk of a folder has room for so many bytes, and for some texts beside them.

    Raises:
        CheckpointError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + _MARGIN_BYTES:
        raise CheckpointError(
            f"{folder.parent}: {free / 2**20:.0f} MiB free, {(needed + _MARGIN_BYTES) / 2**20:.0f} MiB needed; free "
            "space or choose another path"
        )


@contextmanager
def staged_folder(
    target: Path, *, replace: bool = False, seal: Callable[[Path], object] | None = None
) -> Iterator[Path]:
    """Yield an empty folder beside `target`; on success flush it to disk and rename it to `target`.

    On an error it is removed, and one that a killed process left behind is removed by the next attempt.

    Args:
        target: the folder to come.
        replace: a folder of that name gives way, once the new one is on disk; False refuses one that is not empty.
        seal: called with the flushed folder before it is renamed, e.g. to write and verify a manifest.

    Raises:
        CheckpointError: `target` is not free, or its parent cannot be written.
    """
    target = target.absolute()
    if not replace:
        require_free(target)
    stage = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written ({error.strerror}); choose another path") from None
    try:
        yield stage
        flush_folder(stage)
        if seal:
            seal(stage)
        _put(stage, target)
    except BaseException as error:
        shutil.rmtree(stage, ignore_errors=True)
        if isinstance(error, OSError):
            reason = error.strerror or one_line(error)
            raise CheckpointError(
                f"{target}: cannot be written ({reason}); free space or choose another path"
            ) from error
        raise


def publish_folder(stage: Path, target: Path) -> None:
    """Flush a finished folder to disk and rename it to a name that is free (see `require_free`)."""
    flush_folder(stage)
    _put(stage, target)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_folder(folder: Path) -> None:
    """Sync everything to disk, and give every file the rights of a plainly created one (safetensors: owner only)."""
    rights = folder.stat().st_mode & 0o666
    for path in [*folder.rglob("*"), folder]:
        if path.is_file():
            path.chmod(rights)
        sync(path)


def replace_text(path: Path, text: str) -> None:
    """Write a text file aside, flush it and rename it over `path`; both old and new survive a crash whole."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text, encoding="utf-8")
    sync(aside)
    aside.replace(path)
    sync(path.parent)


def remove_folder(folder: Path) -> None:
    """Delete a folder; it is renamed first, so that an interrupted deletion leaves no half folder of that name."""
    doomed = folder.with_name(f".{folder.name}.deleting")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def clear_leftovers(parent: Path) -> None:
    """Remove what killed processes left in a folder of staged folders; one that was about to give way comes back."""
    for suffix in ("replaced", "partial", "deleting"):
        for left in sorted(parent.glob(f".*.{suffix}")):
            target = left.with_name(left.name[1:].removesuffix(f".{suffix}"))
            if suffix == "replaced" and not target.exists():
                left.rename(target)
            else:
                shutil.rmtree(left, ignore_errors=True)


def _put(stage: Path, target: Path) -> None:
    """Rename a finished folder to its name; one that lies there is deleted after that."""
    replaced = target.with_name(f".{target.name}.replaced")
    if target.is_dir() and any(target.iterdir()):
        shutil.rmtree(replaced, ignore_errors=True)
        target.rename(replaced)
    elif target.exists():
        target.rmdir()
    try:
        stage.rename(target)
    except OSError:
        if replaced.exists():
            replaced.rename(target)
        raise
    sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)
