"""Compiled constraints: bits, going back, what is kept, and what cannot be used."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from typing import Any

import pytest

from difflm.checkpoints.constraints import Constraint
from difflm.checkpoints.grammars import KEPT, Grammars, Vocabulary
from difflm.errors import CheckpointError, RequestError
from tests.checkpoints.tiny import make_tokenizer
from tests.decode.grammars import spoken, tokenizer


def ids(matcher: Any) -> set[int]:
    bits = matcher.allowed()
    assert bits is not None
    return {token for token in range(len(tokenizer()) + 3) if bits[token // 8] >> token % 8 & 1}


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"properties": {"a": schema}}
    return schema


def fresh() -> Grammars:
    return Grammars(tokenizer(), len(tokenizer()) + 3, (tokenizer().eos_token_id,))


def test_bits_are_exactly_the_tokens_with_which_the_text_can_go_on() -> None:
    matcher = spoken().grammar(Constraint(regex="(one|four) [0-9]")).matcher()
    pieces = {token: tokenizer().decode([token]) for token in range(len(tokenizer()))}
    expected = {token for token, text in pieces.items() if text and any(w.startswith(text) for w in ("one ", "four "))}
    special = set(tokenizer().all_special_ids)
    assert ids(matcher) == expected - special
    assert not matcher.accepts()
    for token in tokenizer().encode("four 7", add_special_tokens=False):
        assert matcher.take(token)
    assert matcher.accepts()
    assert ids(matcher) == set(), "ends are the engine's business"


def test_ends_are_never_among_the_bits_also_where_the_text_may_end() -> None:
    matcher = spoken().grammar(Constraint(regex="[0-9]+")).matcher()
    assert matcher.take(tokenizer().encode("7", add_special_tokens=False)[0])
    assert matcher.accepts()
    assert {tokenizer().decode([token]) for token in ids(matcher)} >= set("0123456789")
    assert tokenizer().eos_token_id not in ids(matcher)


def test_going_back_is_as_if_nothing_had_been_taken() -> None:
    grammar = spoken().grammar(Constraint(json_schema={"type": "object", "required": ["a"]}))
    tokens = tokenizer().encode('{"a": [1, 2.5, "x"]}', add_special_tokens=False)
    matcher = grammar.matcher()
    states = []
    for token in tokens:
        states.append((ids(matcher), matcher.accepts()))
        assert matcher.take(token)
    assert matcher.accepts()
    for count in (3, 7, 1, 0):
        matcher.back_to(count)
        for number in range(count, len(tokens)):
            assert (ids(matcher), matcher.accepts()) == states[number]
            assert matcher.take(tokens[number])


def test_a_token_that_does_not_fit_changes_nothing() -> None:
    matcher = spoken().grammar(Constraint(regex="ab")).matcher()
    (a, b, c) = (tokenizer().encode(each, add_special_tokens=False)[0] for each in "abc")
    assert not matcher.take(c)
    assert not matcher.take(tokenizer().eos_token_id)
    assert matcher.count == 0
    assert matcher.take(a)
    assert not matcher.take(c)
    assert matcher.take(b)
    assert matcher.accepts()


def test_matchers_of_one_grammar_do_not_see_each_other() -> None:
    grammar = spoken().grammar(Constraint(regex="ab"))
    first, second = grammar.matcher(), grammar.matcher()
    assert first.take(tokenizer().encode("a", add_special_tokens=False)[0])
    assert ids(second) == ids(grammar.matcher())
    assert ids(second) != ids(first)


def test_a_constraint_is_compiled_once_and_the_oldest_are_forgotten() -> None:
    grammars = fresh()
    first = grammars.grammar(Constraint(regex="a0"))
    assert grammars.grammar(Constraint(regex="a0")) is first
    assert grammars.grammar(Constraint(grammar='start: "a0"')) is not first
    for number in range(1, KEPT - 1):
        grammars.grammar(Constraint(regex=f"a{number}"))
    assert grammars.grammar(Constraint(regex="a0")) is first
    grammars.grammar(Constraint(regex="b"))
    assert grammars.grammar(Constraint(regex="a0")) is first, "it was used after the others"
    for number in range(KEPT):
        grammars.grammar(Constraint(regex=f"c{number}"))
    assert grammars.grammar(Constraint(regex="a0")) is not first


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Constraint(regex="["), "regex: it cannot be used .*unclosed character class.*; change it"),
        (Constraint(regex=r"(a)\1"), "regex: it cannot be used .*backreferences are not supported"),
        (Constraint(regex="a(?=b)b"), "regex: it cannot be used .*look-around"),
        (Constraint(regex=r"[^\s\S]"), "regex: it cannot be used"),
        (Constraint(grammar="start: nothing"), "grammar: it cannot be used .*nothing"),
        (Constraint(json_schema={"not": {"type": "string"}}), "json_schema: it cannot be used .*not"),
        (Constraint(json_schema={"type": "integer", "minimum": 3, "maximum": 2}), "json_schema: it cannot be used"),
        (Constraint(json_schema={"$ref": "http://127.0.0.1:9/schema.json"}), "json_schema: it cannot be used"),
        (Constraint(json_schema={"$ref": "file:///etc/passwd"}), "json_schema: it cannot be used"),
        (Constraint(json_schema={"type": "text"}), "json_schema: it cannot be used"),
        (Constraint(json_schema=deep(90)), "json_schema: it cannot be used .*recursion limit"),
        (Constraint(json_schema={"oneOf": [{"type": "string"}, {"maxLength": 2}]}), "json_schema: .*oneOf"),
        (
            Constraint(json_schema={"not": {"type": "string"}, "x-guidance": {"lenient": True}}),
            "json_schema: it cannot be used .*not",
        ),
        (
            Constraint(grammar="start: T\nT: /(.*a.{20})/ & /(.*b.{20})/ & ~/(.*c.{10})/"),
            "grammar: it cannot be used .*fuel",
        ),
        (
            Constraint(grammar='start: n::0\nn::_: "a" n::incr(_)'),
            r"grammar: it cannot be used \(panic[^<]*\); change it",
        ),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_cannot_be_enforced_is_refused(constraint: Constraint, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        spoken().grammar(constraint)


def test_white_space_between_parts_of_json_has_a_bound() -> None:
    matcher = spoken().grammar(Constraint(json_object=True)).matcher()
    (brace, blank) = (tokenizer().encode(each, add_special_tokens=False)[0] for each in "{\t")
    assert matcher.take(brace)
    assert sum(matcher.take(blank) for _ in range(100)) == 24


def test_a_name_cannot_be_written_as_another_text_of_it() -> None:
    """Else it would be one of the other names, with other values."""
    schema = {"properties": {"a": {"type": "null"}}, "patternProperties": {"^b": {"type": "null"}}}

    def taken(text: str) -> bool:
        matcher = spoken().grammar(Constraint(json_schema={"type": "object", **schema})).matcher()
        return all(matcher.take(tokenizer().encode(each, add_special_tokens=False)[0]) for each in text)

    assert taken('{"a":null,"b":null,"c":0,"\\n":0}')
    for name in ("\\u0061", "\\u0062", "\\u0063"):
        assert not taken(f'{{"{name}":0}}')


def test_without_the_library_or_a_tokenizer_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match=r"constraint: it needs llguidance.*pip install 'difflm\[constrain\]'"):
        fresh()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        replace(spoken(), tokenizer=None).grammar(Constraint(json_object=True))


def test_a_tokenizer_without_a_json_form_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(RequestError, match=r"only tokenizers with a tokenizer\.json"):
        Grammars(Slow(), 10, (1,))


HONEST: list[tuple[Constraint, str]] = [
    (Constraint(regex="[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{1,253}\\.[A-Za-z]{2,24}"), "a.word@light.example.org"),
    (Constraint(regex="([0-9]{4}-){300}"), "2026-" * 300),
    (Constraint(regex="(\\w{1,40} ){200}"), "word light " * 100),
    (Constraint(regex=".{0,3000}"), "naive word " * 200),
    (Constraint(json_schema={"type": "string", "maxLength": 20_000, "minLength": 900}), json.dumps("word " * 200)),
    (Constraint(json_schema={"type": "array", "items": {"type": "integer"}, "maxItems": 100_000}), "[1, -2]"),
    (
        Constraint(json_schema={"enum": [f"the value number {number}" for number in range(2000)]}),
        '"the value number 1999"',
    ),
    (
        Constraint(
            json_schema={
                "type": "object",
                "properties": {f"property {number}": {"type": "string", "maxLength": 99} for number in range(800)},
            }
        ),
        '{"property 3": "a", "property 799": "b"}',
    ),
    (
        Constraint(
            json_schema={
                "type": "object",
                "properties": {
                    name: {"type": "string", "format": name}
                    for name in ("date", "date-time", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")
                },
                "required": ["date", "uuid"],
            }
        ),
        '{"date": "2026-11-30", "email": "a@b.org", "uuid": "123e4567-e89b-12d3-a456-426614174000"}',
    ),
    (
        Constraint(
            json_schema={
                "$ref": "#/$defs/tree",
                "$defs": {
                    "tree": {
                        "type": "object",
                        "properties": {"left": {"$ref": "#/$defs/tree"}, "name": {"type": "string"}},
                        "required": ["name"],
                    }
                },
            }
        ),
        '{"left": {"left": {"name": "a"}, "name": "b"}, "name": "c"}',
    ),
]


@pytest.mark.parametrize(("constraint", "text"), HONEST, ids=lambda value: str(value)[:50])
def test_what_is_honestly_asked_for_is_within_the_limits(constraint: Constraint, text: str) -> None:
    matcher = spoken().grammar(constraint).matcher()
    for token in tokenizer().encode(text, add_special_tokens=False):
        assert (matcher.allowed() or bytes(4096))[token // 8] >> token % 8 & 1, tokenizer().decode([token])
        assert matcher.take(token)
    assert matcher.accepts()


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint(regex="(a{1000}){1000}"),
        Constraint(regex="((a{100}){100}){100}"),
        Constraint(regex="(a?){500}a{500}"),
        Constraint(json_schema={"type": "string", "pattern": "^(a{1000}){1000}$"}),
        Constraint(grammar='start: ("a"{1000}){1000}'),
    ],
    ids=lambda constraint: constraint.text[:40],
)
def test_a_step_with_too_much_work_is_given_up_and_the_next_ones_cost_nothing(constraint: Constraint) -> None:
    grammar = spoken().grammar(constraint)
    matcher = grammar.matcher()
    quote = tokenizer().encode('"', add_special_tokens=False)[0]
    (a,) = tokenizer().encode("a", add_special_tokens=False)
    before, taken = time.process_time(), 0
    matcher.take(quote)
    while matcher.allowed() is not None and taken < 200 and matcher.take(a):
        taken += 1
    assert taken < 200
    matcher.back_to(taken + 5)  # as many as are written: the last one may not have been taken in
    assert matcher.allowed() is None
    assert not matcher.accepts()
    assert not matcher.take(a)
    assert grammar.matcher().allowed() is not None, "another answer begins as ever"
    assert time.process_time() - before < 30, "of hours"


def test_a_trial_is_asked_once_and_before_anything_is_compiled() -> None:
    grammars, asked = fresh(), list[str]()

    def trial(constraint: Constraint, vocabulary: Vocabulary) -> None:
        assert vocabulary is grammars.vocabulary
        asked.append(constraint.text)
        if constraint.text == "no":
            raise RequestError("regex: too much")

    for _ in range(2):
        assert grammars.grammar(Constraint(regex="yes"), trial)
        with pytest.raises(RequestError, match="too much"):
            grammars.grammar(Constraint(regex="no"), trial)
    assert asked == ["yes", "no", "no"]


def test_text_that_looks_like_a_mark_is_spelled_where_its_token_is_none() -> None:
    own = make_tokenizer()
    own.add_tokens(["<mark>"])
    mark = own.convert_tokens_to_ids("<mark>")
    grammars = Grammars(own, len(own), (own.eos_token_id,))
    assert grammars.is_mark(mark)
    for constraint, text in (
        (Constraint(regex="<mark>a"), "<mark>a"),
        (Constraint(grammar='start: "b<mark>"'), "b<mark>"),
        (Constraint(json_schema={"const": "<mark>"}), '"<mark>"'),
        (Constraint(grammar=f'start: <[{mark}]> "a"'), "<mark>a"),
    ):
        matcher, taken = grammars.grammar(constraint).matcher(), list[int]()
        while not matcher.accepts():
            bits = matcher.allowed()
            assert bits is not None
            taken.append(max(token for token in range(len(own)) if bits[token // 8] >> token % 8 & 1))
            assert matcher.take(taken[-1]), "what is allowed can be taken"
        assert own.decode(taken, skip_special_tokens=False) == text
        assert (mark in taken) == (constraint.grammar is not None and str(mark) in constraint.grammar)


def test_tokens_that_were_not_taken_end_the_answer() -> None:
    matcher = spoken().grammar(Constraint(regex="[ab]{1,9}")).matcher()
    assert matcher.take(tokenizer().encode("a", add_special_tokens=False)[0])
    matcher.back_to(2)
    assert matcher.allowed() is None
    assert not matcher.accepts()
    assert not matcher.take(tokenizer().encode("a", add_special_tokens=False)[0])
    matcher.back_to(1)
    assert matcher.allowed() is None
