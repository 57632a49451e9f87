"""What decoding knows of a grammar: which ids may stand at the next place, and where the text may end."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


class Matcher(Protocol):
    """How far an answer has come in its grammar."""

    def back_to(self, count: int) -> None:
        """Forget all but the first `count` tokens that were taken."""
        ...

    def allowed(self) -> bytes | None:
        """Return a bit for each id that may come next, the lowest id in the lowest bit; ids that end a text excepted.

        None where that cannot be told, since the grammar takes too much work.
        """
        ...

    def accepts(self) -> bool:
        """Return whether the tokens taken are a whole text of the grammar."""
        ...

    def take(self, token: int) -> bool:
        """Go on by a token; return whether it could be taken. One that could not changes nothing."""
        ...


@runtime_checkable
class Grammar(Protocol):
    """A compiled constraint. Its matchers share what was computed."""

    def matcher(self) -> Matcher:
        """Return a matcher at the beginning."""
        ...


def allowed_ids(matcher: Matcher, ends: tuple[int, ...], suppressed: tuple[int, ...], vocab_size: int) -> Tensor | None:
    """Return which ids may come next, bool [V] on the CPU; None where there is none.

    Args:
        matcher: of the tokens before.
        ends: ids that end the answer; allowed where the grammar accepts, and nowhere else.
        suppressed: ids that are never allowed.
        vocab_size: V.
    """
    bits = matcher.allowed()
    if bits is None:
        return None
    byte_N = torch.frombuffer(bytearray(bits), dtype=torch.uint8)
    bit_V = ((byte_N[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()[:vocab_size].bool()
    if len(bit_V) < vocab_size:
        bit_V = torch.cat([bit_V, bit_V.new_zeros(vocab_size - len(bit_V))])
    bit_V[list(ends)] = matcher.accepts()
    bit_V[list(suppressed)] = False
    return bit_V if bool(bit_V.any()) else None
