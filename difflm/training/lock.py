"""One process per run folder."""

from __future__ import annotations

from pathlib import Path

from difflm.checkpoints.lock import FileLock, InUseError
from difflm.errors import ConfigError

LOCK = ".lock"


class RunLock:
    """Holds a run folder from construction to `close` (or until it is collected).

    Args:
        folder: an existing run folder.

    Raises:
        ConfigError: another process (or another trainer of this one) holds the folder, or it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._lock = FileLock(folder / LOCK)
        except InUseError as error:
            raise ConfigError(
                f"train.output: {folder} is in use by {error.holder}; wait for it or stop it, or choose another run "
                "folder"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"train.output: {folder} cannot be written ({error.strerror}); choose another path"
            ) from None

    @property
    def note(self) -> str:
        """What the run should say about its lock, "" for nothing."""
        lock = self._lock
        if lock.left:
            return f"took over the run folder from {lock.left}, which has ended"
        if lock.unsupported:
            return f"{lock.path}: this file system has no locks ({lock.unsupported}); start no second process"
        return ""

    def close(self) -> None:
        """Give the folder back; the file goes."""
        self._lock.close()
