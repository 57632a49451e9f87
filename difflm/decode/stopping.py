"""Stop strings: where they cut, and what may be told before it is known whether one begins there. No tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What the bytes of an incomplete character are decoded to, one or several of it."""


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
        # Where these tokens end inside a character, it is not theirs: their text has another one there.
        pairs = zip(text, self.decode(tokens[:after]), strict=False)
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) if after else 0
        found: tuple[int, str] | None = None
        for string in self.strings:
            at = text.find(string, max(0, known - len(string) + 1))
            if at >= 0 and (found is None or at < found[0]):
                found = at, string
        if found is None:
            return None
        at, string = found
        counted = self._holding(tokens, text[: at + len(string)])
        return Cut(string=string, text=text[:at], kept=self._holding(tokens[:counted], text[:at]), counted=counted)

    def settled(self, tokens: Sequence[int]) -> int:
        """Return how many leading tokens no stop string can reach into, whatever follows."""
        text = self.decode(tokens)
        # Bytes at the end may be the beginning of any character, also of one that a string has.
        known = text.rstrip(REPLACEMENT)
        longest = max(self._begun(text), len(text) - len(known) + self._begun(known) if known != text else 0)
        # A token that reaches beyond the place where a string may begin is kept whatever comes; it can be told.
        return self._holding(tokens, text[: len(text) - longest])

    def _begun(self, text: str) -> int:
        """Return how many characters at the end of a text may be the beginning of a stop string."""
        return max(
            (n for each in self.strings for n in range(1, min(len(each), len(text) + 1)) if text.endswith(each[:n])),
            default=0,
        )

    def _holding(self, tokens: Sequence[int], text: str) -> int:
        """Return the smallest number of leading tokens whose text begins with `text`, as that of all of them does."""
        low, high = 0, len(tokens)
        while low < high:
            middle = (low + high) // 2
            if self.decode(tokens[:middle]).startswith(text):
                high = middle
            else:
                low = middle + 1
        return low
