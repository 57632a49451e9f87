"""A lock file that the system takes back when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
from pathlib import Path
from typing import IO

from difflm.errors import CheckpointError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None


class InUseError(CheckpointError):
    """Another process holds a lock; `holder` names it.

    Args:
        path: the lock file.
        holder: "process 12 on name", or "another process".
    """

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path}: held by {holder}; wait for it or stop it")
        self.holder = holder


class FileLock:
    """Holds a lock file from construction to `close` (or until it is collected).

    The file names the holder; what counts is the lock on it (flock), so the file of a process that was killed is simply
    taken over.

    Attributes:
        path: the file.
        left: who held it before and has ended without letting go, "" for nobody.
        unsupported: why the file system has no locks, "" where it has.

    Args:
        path: file to make or take over, in an existing folder.

    Raises:
        InUseError: another process (or another part of this one) holds it.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left = self.unsupported = ""
        self._file: IO[str] | None = self._acquire()

    def close(self) -> None:
        """Let go; the file goes."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def _acquire(self) -> IO[str]:
        while True:
            file = self.path.open("a+", encoding="utf-8")
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
        left = _holder(file)
        self.left = "" if left == f"process {os.getpid()} on {platform.node()}" else left
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
                self.unsupported = str(error.strerror)
                return
            raise InUseError(self.path, _holder(file) or "another process") from None


def _holder(file: IO[str]) -> str:
    """Return who wrote a lock file, "" if that cannot be read."""
    file.seek(0)
    try:
        record = json.loads(file.read())
        return f"process {record['pid']} on {record['host']}"
    except (ValueError, KeyError, TypeError):
        return ""
