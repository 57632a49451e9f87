"""Text that was told is never taken back, and nothing of it is lost."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from difflm.serving.texts import GrowingText


def decode(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode("utf-8", "replace")


def told(text: bytes, cuts: Sequence[int], stops: tuple[str, ...] = (), whole: str | None = None) -> list[str]:
    growing, parts, start = GrowingText(decode, stops), [], 0
    for stop in [*sorted(cuts), len(text)]:
        parts.append(growing.add(list(text[start:stop])))
        start = stop
    parts.append(growing.end(decode(text) if whole is None else whole))
    assert growing.told == (decode(text) if whole is None else whole)
    return parts


def test_a_character_of_several_tokens_comes_in_one_piece() -> None:
    text = "a\U0001fae0\u9f9cb".encode()
    parts = told(text, range(1, len(text)))
    assert [each for each in parts if each] == ["a", "\U0001fae0", "\u9f9c", "b"]


def test_bytes_that_never_become_a_character_come_at_the_end() -> None:
    assert told(b"a\xf0\x9f", [1, 2]) == ["a", "", "", "\ufffd"]


def test_what_may_begin_a_stop_string_waits() -> None:
    assert told(b"one ST no", [5, 6], ("STOP",)) == ["one ", "", "ST no", ""]
    growing = GrowingText(decode, ("STOP",))
    assert growing.add(list(b"one STO")) == "one "
    assert growing.end("one ") == ""


@given(
    st.text(max_size=30),
    st.lists(st.integers(0, 60), max_size=8),
    st.lists(st.text(min_size=1, max_size=3), max_size=2),
)
def test_the_parts_are_the_text_and_no_part_runs_into_a_stop_string(
    text: str, cuts: list[int], stops: list[str]
) -> None:
    first = min((place for place in (text.find(stop) for stop in stops) if place >= 0), default=len(text))
    data = text[:first].encode()
    parts = told(data, [min(cut, len(data)) for cut in cuts], tuple(stops))
    assert "".join(parts) == text[:first]
    assert not any("\ufffd" in part for part in parts if "\ufffd" not in text)
