"""A sweep on a terminal: a bar for the items of a point and a line for each point; the table of its points."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from difflm.display.text import printable

if TYPE_CHECKING:
    from difflm.evaluation.sweep import Watcher

_WIDTH = 160


class SweepProgress:
    """Progress of a sweep; a `Watcher`. Away from a terminal only the line of each point is written.

    Args:
        console: where to draw.
    """

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar: TaskID | None = None

    def begin(self, label: str, items: int) -> None:
        """Show the bar of a point; without items it was found finished."""
        self._bar = self.progress.add_task(printable(label), total=items) if items else None

    def item(self) -> None:
        """Move the bar."""
        if self._bar is not None:
            self.progress.advance(self._bar)

    def end(self, line: str) -> None:
        """Put the line of the point in the place of its bar."""
        if self._bar is not None:
            self.progress.remove_task(self._bar)
        self.progress.console.print(Text(printable(line)), soft_wrap=True)


@contextmanager
def sweep_watcher(file: TextIO | None = None) -> Iterator[Watcher]:
    """Yield what shows a sweep go on; leaves the terminal tidy whatever happens.

    Args:
        file: where to write; None is stderr.
    """
    watcher = SweepProgress(Console(file=file or sys.stderr, highlight=False))
    with watcher.progress:
        yield watcher


def show_points(rows: Sequence[Mapping[str, Any]], *, file: TextIO | None = None) -> None:
    """Print the points of a sweep as a table; a star marks those that no other one beats.

    Args:
        rows: of `difflm.evaluation.sweep.Point.row`, with "pareto".
        file: where to write; None is stdout.
    """
    console = Console(file=file or sys.stdout, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(file=file or sys.stdout, highlight=False, soft_wrap=True, width=_WIDTH, no_color=True)
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("", justify="left")
    table.add_column("policy", overflow="fold")
    for name in ("items", "score (95 %)", "tokens/forward", "tokens/s", "prefill+denoise+commit"):
        table.add_column(name, justify="right")
    drafts = any(row.get("acceptance") is not None for row in rows)
    for name in ("tokens/cycle", "accepted") if drafts else ():
        table.add_column(name, justify="right")
    for row in rows:
        more = [_figure(row["tokens_per_cycle"]), _figure(row["acceptance"])] if drafts else []
        stuck = f" ({row['stuck']} stuck)" if row["stuck"] else ""
        table.add_row(
            "*" if row["pareto"] else "",
            Text(printable(row["policy"] + stuck)),
            str(row["items"]),
            f"{row['score']:.3f} ({row['low']:.3f}-{row['high']:.3f})",
            f"{row['tpf']:.2f}",
            f"{row['tps']:.1f}",
            f"{row['prefill']}+{row['denoise']}+{row['commit']}",
            *more,
        )
    console.print(table)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
