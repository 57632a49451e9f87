"""Stop strings against a search character by character, tokens of any lengths."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.decode.stopping import REPLACEMENT, StopStrings

PIECES = ("a", "b", "ab", "ba", "", "aab", "c")


def decode(tokens: Sequence[int]) -> str:
    return "".join(PIECES[token] for token in tokens)


TOKENS = st.lists(st.integers(0, len(PIECES) - 1), max_size=12)
STRINGS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple)


@settings(max_examples=300, deadline=None)
@given(TOKENS, STRINGS, st.integers(0, 4))
def test_the_first_string_cuts_to_the_character(tokens: list[int], strings: tuple[str, ...], after: int) -> None:
    text, known = decode(tokens), len(decode(tokens[:after]))
    places = [
        at for at in range(len(text)) if any(text.startswith(each, at) and at + len(each) > known for each in strings)
    ]
    cut = StopStrings(strings, decode).find(tokens, after=after)
    assert (cut is None) == (not places)
    if cut is not None:
        assert cut.text == text[: places[0]]
        assert text.startswith(cut.string, places[0])
        kept = [n for n in range(len(tokens) + 1) if decode(tokens[:n]).startswith(cut.text)]
        assert cut.kept == kept[0]
        done = [n for n in range(len(tokens) + 1) if cut.string in decode(tokens[:n])[places[0] :]]
        assert cut.counted == done[0]


@settings(max_examples=300, deadline=None)
@given(TOKENS, STRINGS, st.integers(0, 12))
def test_what_was_told_is_never_taken_back(tokens: list[int], strings: tuple[str, ...], first: int) -> None:
    stops = StopStrings(strings, decode)
    seen = tokens[:first]
    if stops.find(seen) is not None:
        return
    told = stops.settled(seen)
    cut = stops.find(tokens)
    assert told <= (len(tokens) if cut is None else cut.kept)


def of_bytes(tokens: Sequence[int]) -> str:
    """As byte-level tokenizers do: what is left of an incomplete character is one replacement character."""
    return bytes(tokens).decode(errors="replace")


def with_fallback(tokens: Sequence[int]) -> str:
    """As tokenizers with byte fallback do: one replacement character for every byte that is left."""
    row = bytes(tokens)
    for whole in range(len(row), max(-1, len(row) - 4), -1):
        with contextlib.suppress(UnicodeDecodeError):
            return row[:whole].decode() + REPLACEMENT * (len(row) - whole)
    raise AssertionError("only the last character may be incomplete")


@pytest.mark.parametrize("spelt", [of_bytes, with_fallback])
@settings(max_examples=200, deadline=None)
@given(
    st.text("a\N{LATIN SMALL LETTER E WITH ACUTE}\N{EURO SIGN}\N{GRINNING FACE}", max_size=8),
    st.lists(
        st.text("a\N{LATIN SMALL LETTER E WITH ACUTE}\N{EURO SIGN}\N{GRINNING FACE}", min_size=1, max_size=2),
        min_size=1,
        max_size=2,
    ),
    st.integers(0, 20),
    st.integers(0, 20),
)
def test_characters_of_several_tokens(
    spelt: Callable[[Sequence[int]], str], text: str, strings: list[str], first: int, after: int
) -> None:
    tokens = list(text.encode())
    first, after = min(first, len(tokens)), min(after, len(tokens))
    ends = [len(text[:n].encode()) for n in range(len(text) + 1)]  # of each character, tokens
    places = [
        at
        for at in range(len(text))
        if any(text.startswith(each, at) and ends[at + len(each)] > after for each in strings)
    ]
    stops = StopStrings(tuple(strings), spelt)
    cut = stops.find(tokens, after=after)
    assert (cut is None) == (not places)
    if cut is not None:
        assert (cut.text, cut.kept) == (text[: places[0]], ends[places[0]])
        assert cut.counted == ends[places[0] + len(cut.string)]
    if stops.find(tokens[:first]) is None:
        whole = stops.find(tokens)
        assert stops.settled(tokens[:first]) <= (len(tokens) if whole is None else whole.kept)


def test_text_that_no_string_can_begin_in_is_told_at_once() -> None:
    assert StopStrings(("bc",), decode).settled([0, 0, 2]) == 3  # a token is told whole, or not at all
    assert StopStrings(("bc",), decode).settled([0, 0, 1]) == 2
    assert StopStrings(("c",), decode).settled([0, 0, 1]) == 3
