"""The text of a growing answer, in parts that never have to be taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from difflm.decode.stopping import REPLACEMENT


@dataclass(slots=True)
class GrowingText:
    """Text of final tokens, told as early as nothing that follows can change it.

    Characters of which bytes are missing, and what could be the beginning of a stop string, are kept back; so is a
    whole one in the last token, as answers end with the token in which their stop string begins.

    Attributes:
        decode: token ids to text; the text of more tokens begins with that of fewer, up to an incomplete character.
        stops: stop strings.
        tokens: so far.
        told: text so far.
    """

    decode: Callable[[Sequence[int]], str]
    stops: tuple[str, ...] = ()
    tokens: list[int] = field(default_factory=list[int])
    told: str = ""

    def add(self, tokens: Sequence[int]) -> str:
        """Take in tokens and return the text that is certain now."""
        self.tokens += tokens
        text = self.decode(self.tokens).rstrip(REPLACEMENT)
        certain = text[: min(len(text) - self._begun(text), self._whole(text))]
        if len(certain) <= len(self.told) or not certain.startswith(self.told):
            return ""
        new = certain[len(self.told) :]
        self.told = certain
        return new

    def end(self, text: str) -> str:
        """Return what is left of the whole text.

        Args:
            text: of the answer, cut before a stop string.
        """
        assert text.startswith(self.told), "what was told is final"
        new = text[len(self.told) :]
        self.told = text
        return new

    def _whole(self, text: str) -> int:
        """Return where a stop string begins in the last token, else the text's length."""
        if not self.stops:
            return len(text)
        before = len(self.decode(self.tokens[:-1]).rstrip(REPLACEMENT))
        return min((place for stop in self.stops if (place := text.find(stop, before)) >= 0), default=len(text))

    def _begun(self, text: str) -> int:
        """Return how many characters at the end may be the beginning of a stop string."""
        return max(
            (n for stop in self.stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n])),
            default=0,
        )
