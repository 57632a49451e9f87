"""Terminal view of weights that are copied: a bar with bytes, files and time, or plain lines away from a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from difflm.display.text import printable

if TYPE_CHECKING:
    from difflm.checkpoints.resume import Observer


class CopyProgress:
    """Progress of a copy on a terminal: a bar for each part of the work; an `Observer` of `difflm.checkpoints.resume`.

    Args:
        console: where to draw; a terminal.
    """

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TextColumn("file {task.fields[files_done]}/{task.fields[files]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._bar: TaskID | None = None
        self._files_done = 0

    def phase(self, name: str, *, size: int, files: int, done: int = 0, files_done: int = 0) -> None:
        """Show a bar for a part of the work; see `Observer`."""
        self._files_done = files_done
        self._bar = self.progress.add_task(name, total=size, completed=done, files=files, files_done=files_done)
        self.progress.start()

    def advance(self, count: int, *, files: int = 0) -> None:
        """Move the bar."""
        assert self._bar is not None, "phase comes first"
        self._files_done += files
        self.progress.update(self._bar, advance=count, files_done=self._files_done)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self.progress.console.print(Text(printable(text)))

    def close(self) -> None:
        """Leave the bars as they stand."""
        self.progress.stop()


class CopyLines:
    """Progress of a copy as plain lines, at most one per interval; a short copy writes none but notes.

    Args:
        file: where to write.
        interval: seconds between two lines, and before the first.
        clock: seconds, monotonic.
    """

    def __init__(self, file: TextIO, *, interval: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.file, self.interval, self.clock = file, interval, clock
        self._due = clock() + interval
        self._name, self._done, self._size, self._files_done, self._files = "", 0, 0, 0, 0

    def phase(self, name: str, *, size: int, files: int, done: int = 0, files_done: int = 0) -> None:
        """Begin a part of the work; see `Observer`."""
        self._name, self._done, self._size, self._files_done, self._files = name, done, size, files_done, files

    def advance(self, count: int, *, files: int = 0) -> None:
        """Count, and write a line if one is due."""
        self._done += count
        self._files_done += files
        if self.clock() >= self._due:
            self._due = self.clock() + self.interval
            share = f"{self._done / 1e9:.1f}/{self._size / 1e9:.1f} GB"
            self.note(f"{self._name}: {share}, file {self._files_done}/{self._files}")

    def note(self, text: str) -> None:
        """Write a line."""
        print(text, file=self.file, flush=True)

    def close(self) -> None:
        """Do nothing: every line is written already."""


@contextmanager
def copy_observer(file: TextIO | None = None) -> Iterator[Observer]:
    """Yield a bar if the file is a terminal, plain lines otherwise; leaves the terminal tidy whatever happens.

    Args:
        file: where to write; None is stderr.
    """
    stream = file or sys.stderr
    console = Console(file=stream, highlight=False)
    observer = CopyProgress(console) if console.is_terminal else CopyLines(stream)
    try:
        yield observer
    finally:
        observer.close()
