"""Reading: which lines belong to one message."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from difflm.chat.lines import Reader


def messages(lines: Sequence[str]) -> tuple[list[str], list[bool]]:
    """Return the messages of lines, and for each line whether it was asked for as one that goes on."""
    left, asked = list(lines), list[bool]()

    def line(goes_on: bool) -> str:
        if not left:
            raise EOFError
        asked.append(goes_on)
        return left.pop(0)

    reader, found = Reader(line), list[str]()
    while True:
        try:
            found.append(reader.read())
        except EOFError:
            return found, asked


@pytest.mark.parametrize(
    ("lines", "expected", "asked"),
    [
        (["one", "", "two"], ["one", "", "two"], [False, False, False]),
        (["one\\", "two\\", "three", "four"], ["one\ntwo\nthree", "four"], [False, True, True, False]),
        (
            ['"""', "one\\", "", "/exit", ' """ ', "two"],
            ["one\\\n\n/exit", "two"],
            [False, *[True] * 4, False],
        ),
        (['say """', "two"], ['say """', "two"], [False, False]),
        (["one\\"], ["one"], [False]),
        (['"""', "one"], ["one"], [False, True]),
        ([], [], []),
    ],
)
def test_messages_of_lines(lines: list[str], expected: list[str], asked: list[bool]) -> None:
    assert messages(lines) == (expected, asked)
