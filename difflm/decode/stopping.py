"""Stop strings: where they cut, and what may be told before it is known whether one begins there. No tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Where a stop string ends a generation.

    Attributes:
        string: the stop string.
        text: the text before it, exactly.
        kept: leading tokens that hold that text; the last of them may also hold the beginning of the string.
        counted: leading tokens up to the one in which the string is complete.
    """

    string: str
    text: str
    kept: int
    counted: int


@dataclass(frozen=True, slots=True)
class StopStrings:
    """The stop strings of a request.

    Attributes:
        strings: non-empty.
        decode: token ids to text; the text of more tokens begins with that of fewer, up to an incomplete character.
    """

    strings: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]

    def find(self, tokens: Sequence[int], *, after: int = 0) -> Cut | None:
        """Return the cut at the first stop string that is complete among the tokens, None without one.

        Args:
            tokens: generated ids.
            after: strings that are complete within this many tokens are no stops.
        """
        text = self.decode(tokens)
        known = len(self.decode(tokens[:after])) if after else 0
        found: tuple[int, str] | None = None
        for string in self.strings:
            at = text.find(string, max(0, known - len(string) + 1))
            if at >= 0 and (found is None or at < found[0]):
                found = at, string
        if found is None:
            return None
        at, string = found
        counted = self._holding(tokens, at + len(string))
        return Cut(string=string, text=text[:at], kept=self._holding(tokens[:counted], at), counted=counted)

    def settled(self, tokens: Sequence[int]) -> int:
        """Return how many leading tokens no stop string can reach into, whatever follows."""
        text = self.decode(tokens)
        longest = max(
            (n for each in self.strings for n in range(1, min(len(each), len(text) + 1)) if text.endswith(each[:n])),
            default=0,
        )
        # A token that reaches beyond the place where a string may begin is kept whatever comes; it can be told.
        return self._holding(tokens, len(text) - longest)

    def _holding(self, tokens: Sequence[int], length: int) -> int:
        """Return the smallest number of leading tokens whose text has at least `length` characters."""
        low, high = 0, len(tokens)
        while low < high:
            middle = (low + high) // 2
            if len(self.decode(tokens[:middle])) >= length:
                high = middle
            else:
                low = middle + 1
        return low
