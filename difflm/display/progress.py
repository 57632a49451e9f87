"""Terminal view of a training run: a bar, or plain lines away from a terminal."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from difflm.display.text import printable

if TYPE_CHECKING:
    from difflm.training.metrics import Metrics, Observer


@dataclass(slots=True)
class Pace:
    """Speed and remaining time of a run, from its metrics.

    Attributes:
        total: tokens of the whole run.
        done: tokens so far.
        rate: tokens per second, smoothed over about ten steps; None before the first step.
    """

    total: int
    done: int
    rate: float | None = None

    def update(self, done: int, tokens_per_second: float) -> None:
        """Take in a step."""
        self.done = done
        self.rate = tokens_per_second if self.rate is None else 0.9 * self.rate + 0.1 * tokens_per_second

    @property
    def remaining(self) -> str:
        """Time to the end as h:mm:ss, "-" while unknown."""
        if not self.rate:
            return "-"
        seconds = round(max(self.total - self.done, 0) / self.rate)
        return f"{seconds // 3600}:{seconds % 3600 // 60:02}:{seconds % 60:02}"


def describe_step(metrics: Metrics, pace: Pace) -> str:
    """Return loss, block size, stage, speed and remaining time of a training step as one line."""
    block, parts = metrics.get("block_size"), list[str]()
    if metrics.get("stage") is not None:
        parts.append(f"stage {metrics['stage']}")
    if block is not None:
        parts.append(f"block {block}")
    if metrics.get("loss") is not None:
        parts.append(f"loss {metrics['loss']:.3f}")
    if pace.rate is not None:
        parts.append(f"{pace.rate:.0f} tokens/s")
    return "  ".join([*parts, f"ETA {pace.remaining}"])


def describe_validation(metrics: Metrics) -> str:
    """Return the perplexities of a validation as one line."""
    by_block = metrics.get("perplexity") or {}
    parts = [f"block {size} {value:.2f}" for size, value in by_block.items()]
    if metrics.get("ar_perplexity") is not None:
        parts.append(f"AR {metrics['ar_perplexity']:.2f}")
    return f"validation at {metrics.get('num_tokens', 0)} tokens, perplexity: {', '.join(parts) or '-'}"


def describe_samples(metrics: Metrics) -> str:
    """Return the tokens per forward of a moment's samples as one line."""
    figures = f"{metrics['tokens_per_forward']:.2f} tokens per forward"
    return f"samples at {metrics.get('num_tokens', 0)} tokens: {metrics['samples']} completions, {figures}"


def describe_skipped(metrics: Metrics) -> str:
    """Return what was wrong with a step that was left out as one line."""
    count = f"{metrics['skipped']} of {metrics['budget']} that train.nonfinite.budget allows"
    return f"skipped {metrics['reason']} ({count})"


ASIDE = {"validation": describe_validation, "samples": describe_samples, "skipped": describe_skipped}
"""Kinds of rows that get a line of their own."""


class TrainingProgress:
    """Progress of a training run on a terminal: a bar with stage, loss, tokens/s and ETA; an `Observer`.

    Args:
        console: where to draw; a terminal.
    """

    def __init__(self, console: Console) -> None:
        self.pace = Pace(0, 0)
        self.progress = Progress(
            TextColumn("{task.percentage:>3.0f}%"), BarColumn(), TextColumn("{task.description}"), console=console
        )
        self._bar: TaskID | None = None

    def start(self, total_tokens: int, done_tokens: int = 0) -> None:
        """Show the bar.

        Args:
            total_tokens: length of the run, tokens.
            done_tokens: what a resumed run has behind it, tokens.
        """
        self.pace = Pace(total_tokens, done_tokens)
        self._bar = self.progress.add_task("", total=total_tokens, completed=done_tokens)
        self.progress.start()

    def update(self, metrics: Metrics) -> None:
        """Move the bar (kind "train"), or print the figures of a validation or of samples above it.

        Args:
            metrics: a row of metrics.jsonl.
        """
        if metrics.get("kind") in ASIDE:
            self.message(ASIDE[metrics["kind"]](metrics))
            return
        self.pace.update(metrics["num_tokens"], metrics["tokens_per_second"])
        assert self._bar is not None, "start comes first"
        self.progress.update(self._bar, completed=self.pace.done, description=describe_step(metrics, self.pace))

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        self.progress.console.print(Text(printable(text)))

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.progress.stop()


class TrainingLines:
    """Progress of a training run as plain lines, at most one per interval; an `Observer`.

    Args:
        file: where to write.
        interval: seconds between two lines about steps; the run's first and last step are always told.
        clock: seconds, monotonic.
    """

    def __init__(self, file: TextIO, *, interval: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.file, self.interval, self.clock = file, interval, clock
        self.pace = Pace(0, 0)
        self._due = -math.inf

    def start(self, total_tokens: int, done_tokens: int = 0) -> None:
        """Note the run's length.

        Args:
            total_tokens: length of the run, tokens.
            done_tokens: what a resumed run has behind it, tokens.
        """
        self.pace = Pace(total_tokens, done_tokens)

    def update(self, metrics: Metrics) -> None:
        """Write a line about a step if one is due, or about a validation or samples.

        Args:
            metrics: a row of metrics.jsonl.
        """
        if metrics.get("kind") in ASIDE:
            self.message(ASIDE[metrics["kind"]](metrics))
            return
        self.pace.update(metrics["num_tokens"], metrics["tokens_per_second"])
        if self.clock() >= self._due or self.pace.done >= self.pace.total:
            self._due = self.clock() + self.interval
            step = f"step {metrics['step']}  " if metrics.get("step") is not None else ""
            self.message(f"{step}{self.pace.done}/{self.pace.total} tokens  {describe_step(metrics, self.pace)}")

    def message(self, text: str) -> None:
        """Write a line."""
        print(text, file=self.file, flush=True)

    def close(self) -> None:
        """Do nothing: every line is written already."""


def training_observer(file: TextIO | None = None) -> Observer:
    """Return a progress bar if the file is a terminal, plain lines otherwise.

    Args:
        file: where to write; None is stderr.
    """
    stream = file or sys.stderr
    console = Console(file=stream, highlight=False)
    return TrainingProgress(console) if console.is_terminal else TrainingLines(stream)
