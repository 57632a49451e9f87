"""A terminal in memory."""

from __future__ import annotations

import io

from rich.console import Console


def terminal(width: int = 60) -> Console:
    """Return a terminal that writes into memory."""
    # A capable terminal, whatever TERM says where the tests run.
    facts = {"TERM": "xterm-256color"}
    return Console(
        file=io.StringIO(), force_terminal=True, width=width, height=10, legacy_windows=False, _environ=facts
    )


def output(console: Console) -> str:
    """Return what a terminal of `terminal` has been given."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
