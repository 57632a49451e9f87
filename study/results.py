"""results.jsonl: every figure of the study, one line each, replaced when it is measured again."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from difflm.checkpoints.folders import replace_text
from difflm.plots import read_rows

KEY = ("kind", "stage", "task", "threshold")
"""What tells lines apart."""


class Results:
    """The lines of one study.

    Args:
        path: the file; absent ones are begun.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self.rows: list[dict[str, Any]] = read_rows(path) if path.is_file() else []

    def put(self, row: Mapping[str, Any]) -> None:
        """Write a line, in the place of one with the same kind, stage, task and threshold."""
        key = self._key(row)
        with self._lock:
            places = [number for number, each in enumerate(self.rows) if self._key(each) == key]
            if places:
                self.rows[places[0]] = dict(row)
            else:
                self.rows.append(dict(row))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(self.path, "".join(f"{json.dumps(each)}\n" for each in self.rows))

    def of(self, kind: str, **wanted: Any) -> list[dict[str, Any]]:
        """Return the lines of a kind whose fields have these values."""
        return [
            each
            for each in self.rows
            if each["kind"] == kind and all(each.get(name) == value for name, value in wanted.items())
        ]

    @staticmethod
    def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in KEY)
