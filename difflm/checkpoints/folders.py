"""Output folders: written aside and renamed, so that nothing half-written carries the final name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from difflm.checkpoints.fields import one_line
from difflm.errors import CheckpointError


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


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; on success flush it to disk and rename it to `target`.

    On an error it is removed, and one that a killed process left behind is removed by the next attempt.

    Raises:
        CheckpointError: `target` is not free, or its parent cannot be written.
    """
    target = target.absolute()
    require_free(target)
    stage = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written ({error.strerror}); choose another path") from None
    try:
        yield stage
        _flush(stage)
        if target.exists():
            target.rmdir()
        stage.rename(target)
    except BaseException as error:
        shutil.rmtree(stage, ignore_errors=True)
        if isinstance(error, OSError):
            reason = error.strerror or one_line(error)
            raise CheckpointError(
                f"{target}: cannot be written ({reason}); free space or choose another path"
            ) from error
        raise


def _flush(folder: Path) -> None:
    """Sync everything to disk, and give every file the rights of a plainly created one (safetensors: owner only)."""
    rights = folder.stat().st_mode & 0o666
    for path in [*folder.rglob("*"), folder]:
        if path.is_file():
            path.chmod(rights)
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
