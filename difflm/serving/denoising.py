"""What happens on the way to an answer, as JSON objects: `stream_options.denoising`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from difflm.decode.events import Denoised, Drafted, Edited
from difflm.serving.answers import Answer, Delta, Provisional
from difflm.serving.pieces import Pieces

MOST_GUESSES = 64
"""Guesses of an event, those of the first open positions."""


def provisional_object(event: Provisional, answer: Answer, pieces: Pieces | None) -> dict[str, Any]:
    """Return tokens that may still change, positions counted from the start of the answer.

    Args:
        event: of the engine.
        answer: that took it in.
        pieces: text of single tokens; None without a tokenizer.
    """
    first = len(answer.prompt)
    told: dict[str, Any] = {
        "index": answer.index,
        "event": type(event).__name__.lower(),
        "forward": answer.forward,
        **_tokens([place - first for place in event.positions], event.tokens, pieces),
        "confidences": list(event.confidences),
    }
    if not isinstance(event, Drafted):
        told |= _bounds(event.block, answer)
    if isinstance(event, Denoised):
        told["open_positions"] = [place - first for place in event.open_positions]
        guesses = event.guesses[:MOST_GUESSES]
        told["guesses"] = {
            **_tokens([place - first for place, _, _ in guesses], [token for _, token, _ in guesses], pieces),
            "confidences": [round(confidence, 4) for _, _, confidence in guesses],
        }
    if isinstance(event, Edited):
        told["before"] = list(event.before)
        told["before_texts"] = _texts(event.before, pieces)
    return told


def committed_object(delta: Delta, answer: Answer, pieces: Pieces | None) -> dict[str, Any]:
    """Return tokens that are final.

    Args:
        delta: with new tokens.
        answer: that they are of.
        pieces: text of single tokens; None without a tokenizer.
    """
    stop = len(answer.tokens)
    return {
        "index": answer.index,
        "event": "committed",
        "forward": answer.forward,
        **_tokens(range(stop - len(delta.tokens), stop), delta.tokens, pieces),
        **_bounds(delta.block, answer),
    }


def _tokens(positions: Sequence[int], tokens: Sequence[int], pieces: Pieces | None) -> dict[str, Any]:
    return {"positions": list(positions), "tokens": list(tokens), "texts": _texts(tokens, pieces)}


def _texts(tokens: Sequence[int], pieces: Pieces | None) -> list[str]:
    return [] if pieces is None else [pieces.text_of(token) for token in tokens]


def _bounds(block: int, answer: Answer) -> dict[str, Any]:
    """Return number and bounds of a block; the first one may begin in the prompt, before position 0."""
    start = block * answer.block_size - len(answer.prompt)
    return {"block": block, "block_start": start, "block_stop": start + answer.block_size}
