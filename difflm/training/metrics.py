"""What a run tells: observers, and metrics.jsonl."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from difflm.checkpoints.folders import replace_text
from difflm.errors import CheckpointError
from difflm.plots import read_rows

Metrics = Mapping[str, Any]


STATUS = Path("/proc/self/status")


def peak_memory(device: str) -> int | None:
    """Return the most memory that was in use so far, bytes: the process's on CPU, torch's tensors on an accelerator.

    Args:
        device: of the model.
    """
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # Linux's counter of the program itself comes first: the other one carries over the peak of the parent process.
    found = _status("VmHWM")
    if found is not None:
        return found
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes there, KiB elsewhere


def resident_memory() -> int | None:
    """Return the memory that this process holds now, bytes; None where the system does not say."""
    return _status("VmRSS")


def _status(field: str) -> int | None:
    if not STATUS.exists():
        return None
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    return None


class Observer(Protocol):
    """Receives a run's progress, e.g. to draw a bar. The trainer itself prints nothing."""

    def start(self, total_tokens: int, done_tokens: int) -> None:
        """Called once, with the run's length and what a resumed run has behind it."""
        ...

    def update(self, metrics: Metrics) -> None:
        """Called with each row of metrics.jsonl, as it is written."""
        ...

    def message(self, text: str) -> None:
        """Called with a line for the user (resumed from, checkpoint written, data counts)."""
        ...

    def close(self) -> None:
        """Called once at the end, also after an error."""
        ...


class Silent:
    """An observer that shows nothing."""

    def start(self, total_tokens: int, done_tokens: int) -> None:
        """Do nothing."""

    def update(self, metrics: Metrics) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class MetricsLog:
    """metrics.jsonl of a run folder, one JSON object a line, flushed as written.

    Args:
        path: the file; created if absent.
        step: optimiser steps of the checkpoint that the run continues from; later rows of an interrupted run
            are cut off, so that every step stands once.

    Raises:
        CheckpointError: the file cannot be written.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        self.path = path
        rows = read_rows(path) if path.exists() else []
        kept = [row for row in rows if row["step"] <= step and step > 0]
        with _one_line(path):
            replace_text(path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, row: Metrics) -> None:
        """Append a row.

        Raises:
            CheckpointError: the file cannot be written.
        """
        with _one_line(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror}); free space and resume") from None
