"""One process per run folder: a lock that the system takes back when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
from pathlib import Path
from typing import IO

from difflm.errors import ConfigError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

LOCK = ".lock"


class RunLock:
    """Holds a run folder from construction to `close` (or until it is collected).

    The file `.lock` names the holder; what counts is the lock on it (flock), so the file of a process that was killed
    is simply taken over.

    Args:
        folder: an existing run folder.

    Raises:
        ConfigError: another process (or another trainer of this one) holds the folder, or it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self.note = ""
        self._file: IO[str] | None = self._acquire()

    def close(self) -> None:
        """Give the folder back; the file goes."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def _acquire(self) -> IO[str]:
        while True:
            try:
                file = self.path.open("a+", encoding="utf-8")
            except OSError as error:
                raise ConfigError(
                    f"train.output: {self.path.parent} cannot be written ({error.strerror}); choose another path"
                ) from None
            try:
                self._lock(file)
            except BaseException:
                file.close()
                raise
            # A holder deletes the file as it lets go: then this is a lock on nothing, and the next try makes a new one.
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(file.fileno()).st_ino == self.path.stat().st_ino:
                    break
            file.close()
        left, me = _holder(file), f"process {os.getpid()} on {platform.node()}"
        if left and left != me:
            self.note = f"took over the run folder from {left}, which has ended"
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": platform.node()}) + "\n")
        file.flush()
        return file

    def _lock(self, file: IO[str]) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                self.note = f"{self.path}: this file system has no locks ({error.strerror}); start no second process"
                return
            raise ConfigError(
                f"train.output: {self.path.parent} is in use by {_holder(file) or 'another process'}; wait for it or "
                "stop it, or choose another run folder"
            ) from None


def _holder(file: IO[str]) -> str:
    """Return who wrote a lock file, "" if that cannot be read."""
    file.seek(0)
    try:
        record = json.loads(file.read())
        return f"process {record['pid']} on {record['host']}"
    except (ValueError, KeyError, TypeError):
        return ""
