"""Text from models and files, made safe for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return the text with control characters replaced and tabs expanded, safe for a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text.replace("\t", "    "))
