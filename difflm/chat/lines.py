"""Lines of input -> messages: a message may have several lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

QUOTES = '"""'


@dataclass(frozen=True, slots=True)
class Reader:
    r"""Reads messages: one line, lines that end in a backslash with the next one, or lines between two of `\"\"\"`.

    Attributes:
        line: returns the next line without its end, given whether it goes on with a message; raises EOFError.
    """

    line: Callable[[bool], str]

    def read(self) -> str:
        """Return the next message.

        Raises:
            EOFError: there is none; a message that input ends in the middle of is returned first.
        """
        first = self.line(False)
        if first.strip() == QUOTES:
            return "\n".join(self._until_quotes())
        lines = [first]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            try:
                lines.append(self.line(True))
            except EOFError:
                break
        return "\n".join(lines)

    def _until_quotes(self) -> list[str]:
        lines = list[str]()
        try:
            while (line := self.line(True)).strip() != QUOTES:
                lines.append(line)
        except EOFError:
            pass
        return lines
