"""Results as JSON lines that an interrupted measurement goes on from, and Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from difflm.bench.environment import environment
from difflm.errors import DifflmError
from difflm.plots import read_rows

Row = dict[str, Any]


class Results:
    """A file of rows. Its first one says what is measured; a file about something else is refused.

    Args:
        path: of the file; created when missing.
        subject: what the measurement depends on; None only reads.

    Raises:
        DifflmError: the file holds another measurement, or there is none to read.
    """

    def __init__(self, path: Path, subject: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.rows: list[Row] = read_rows(path) if subject is None or path.exists() else []
        if subject is None:
            return
        said = json.loads(json.dumps({"kind": "subject", **subject}))
        if not self.rows:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.add(said)
        elif self.rows[0] != said:
            differ = sorted(key for key in {*said, *self.rows[0]} if said.get(key) != self.rows[0].get(key))
            raise DifflmError(
                f"{path}: holds a measurement with another {', '.join(differ)}; choose another --results, or delete it"
            )
        # A line that an interruption cut short is gone.
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        self.add({"kind": "environment", **environment()})

    def add(self, row: Row) -> None:
        """Append a row, to the file at once."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def of(self, kind: str) -> list[Row]:
        """Return the rows of a kind."""
        return [row for row in self.rows if row.get("kind") == kind]

    def done(self, kind: str, *fields: str) -> set[tuple[Any, ...]]:
        """Return the values that these fields have in the rows of a kind."""
        return {tuple(row[field] for field in fields) for row in self.of(kind)}


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table; numbers with two decimals from floats, an empty cell from None."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def share(hits: int, count: int) -> str:
    """Return "hits/count"."""
    return f"{hits}/{count}"
