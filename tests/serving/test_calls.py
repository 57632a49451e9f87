"""Calls in an answer's text: whole ones are told apart, everything else stays, however the text comes in parts."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from difflm.serving.calls import CallFormat, GrowingCalls, end_of

MARKED = CallFormat(opening="<tool_call>", closing="</tool_call>")
BARE = CallFormat(arguments="parameters")
NAMES = ("weather", "add")


def call(name: str = "weather", arguments: str = '{"city": "Rome"}') -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def read(text: str, format: CallFormat = MARKED, *, single: bool = False) -> tuple[str, list[tuple[str, object]]]:
    """Return content and calls of a whole text."""
    growing = GrowingCalls(format=format, names=NAMES, single=single)
    told = growing.end(text)
    assert (told.text, list(told.calls)) == (growing.content, growing.calls)
    return growing.content, [(each.name, json.loads(each.arguments)) for each in growing.calls]


ROME = ("weather", {"city": "Rome"})


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (call(), "", [ROME]),
        (f"\n\n{call()}\n", "", [ROME]),
        (f"I will look.\n{call()}\n{call('add', '{}')}", "I will look.", [ROME, ("add", {})]),
        (f"{call()} and more \n", "and more", [ROME]),
        (call(arguments='{"city": "</tool_call>\\\\"}'), "", [("weather", {"city": "</tool_call>\\"})]),
        ('<tool_call>{"name": "add"}</tool_call>', "", [("add", {})]),
        (call(arguments='{"a": "\\u00e9\\ud83d\\ude00"}'), "", [("weather", {"a": "\u00e9\U0001f600"})]),
        # What is no call stays, to the character.
        (" no call \n", " no call \n", []),
        (call("other"), call("other"), []),
        (call(arguments="[1]"), call(arguments="[1]"), []),
        (call(arguments="null"), call(arguments="null"), []),
        (call(arguments='{"a": NaN}'), call(arguments='{"a": NaN}'), []),
        (call(arguments='{"a": 1e999}'), call(arguments='{"a": 1e999}'), []),
        (call(arguments='{"a": "\\ud83d"}'), call(arguments='{"a": "\\ud83d"}'), []),
        (call(arguments='{"a": 1'), call(arguments='{"a": 1'), []),
        ('<tool_call>["weather"]</tool_call>', '<tool_call>["weather"]</tool_call>', []),
        (call()[:-3], call()[:-3], []),
        (f"<tool_call>{'[' * 100_000}</tool_call>", f"<tool_call>{'[' * 100_000}</tool_call>", []),
        (f"{call('other')}\n{call()}", call("other"), [ROME]),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_marked_calls(text: str, content: str, calls: list[tuple[str, object]]) -> None:
    assert read(text) == (content, calls)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('{"name": "weather", "parameters": {"city": "Rome"}}', "", [ROME]),
        (
            ' {"name": "weather", "parameters": {"city": "Rome"}}; {"name": "add", "parameters": {}}\n',
            "",
            [ROME, ("add", {})],
        ),
        ('{"name": "weather", "parameters": {"city": "Rome"}} there', None, []),
        ('{"name": "weather", "parameters": {"city": "Rome"}}{"name": "add"}', None, []),
        ('{"name": "other", "parameters": {}}', None, []),
        ('{"city": "Rome"}\n', None, []),
        ('{"name": "weather", "para', None, []),
        ('here: {"name": "weather", "parameters": {"city": "Rome"}}', None, []),
        ("", None, []),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_bare_calls(text: str, content: str | None, calls: list[tuple[str, object]]) -> None:
    assert read(text, BARE) == (text if content is None else content, calls)


def test_a_single_call_is_the_first() -> None:
    text = f"{call()}{call('add', '{}')}"
    assert read(text, single=True) == ("", [ROME])
    growing = GrowingCalls(format=MARKED, names=NAMES, single=True)
    told = [growing.add(call()), growing.add(call("add", "{}")), growing.end("")]
    assert [len(each.calls) for each in told] == [1, 0, 0]


def test_calls_have_different_ids() -> None:
    growing = GrowingCalls(format=MARKED, names=NAMES)
    one, other = growing.end(f"{call()}{call()}").calls
    assert one.id != other.id
    assert one.id.startswith("call_")


def test_content_is_told_as_soon_as_it_is_certain() -> None:
    growing = GrowingCalls(format=MARKED, names=NAMES)
    assert [growing.add(part).text for part in ("I will", " look", ". ", "<tool", "box>")] == [
        "I will", " look", ".", "", " <toolbox>",
    ]  # fmt: skip
    assert growing.add(call()[:-1]).calls == ()
    assert len(growing.add(">").calls) == 1


PIECES = [
    *(call(), call("add", '{"a": "</tool_call>"}'), call("other"), "<tool_call>", "</tool_call>", '"', "\\", " ", "\n"),
    *("text", "<", "<tool", '{"name": "weather", "parameters": {}}', ";", "{", "}"),
]
PARTS = st.lists(st.sampled_from(PIECES), max_size=8)


@given(parts=PARTS, cuts=st.lists(st.integers(0, 400), max_size=12), format=st.sampled_from([MARKED, BARE]))
def test_the_parts_in_which_a_text_comes_change_nothing(parts: list[str], cuts: list[int], format: CallFormat) -> None:
    text = "".join(parts)
    places = sorted({0, len(text), *(each for each in cuts if each < len(text))})
    growing = GrowingCalls(format=format, names=NAMES)
    told = [growing.add(text[a:b]) for a, b in pairwise(places)]
    told.append(growing.end(""))
    assert ("".join(each.text for each in told), [c for each in told for c in each.calls]) == (
        growing.content,
        growing.calls,
    )
    assert (growing.content, [(each.name, json.loads(each.arguments)) for each in growing.calls]) == read(text, format)
    if not growing.calls:
        assert growing.content == text


def test_marks_inside_of_strings_are_no_marks() -> None:
    assert end_of('"a</b>" </b>', 0, "</b>") == 12
    assert end_of('"a\\"</b>" </b>', 0, "</b>") == 14
    assert end_of('"</b>', 0, "</b>") is None
    assert end_of("\\</b>", 0, "</b>") == 5
