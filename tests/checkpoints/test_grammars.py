"""Compiled constraints: bits, going back, what is kept, and what cannot be used."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest

from difflm.checkpoints.constraints import Constraint
from difflm.checkpoints.grammars import KEPT, Grammars
from difflm.errors import CheckpointError, RequestError
from tests.decode.grammars import spoken, tokenizer


def ids(matcher: Any) -> set[int]:
    bits = matcher.allowed()
    assert bits is not None
    return {token for token in range(len(tokenizer()) + 3) if bits[token // 8] >> token % 8 & 1}


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
    ],
)
def test_what_cannot_be_enforced_is_refused(constraint: Constraint, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        spoken().grammar(constraint)


def test_white_space_between_parts_of_json_has_a_bound() -> None:
    matcher = spoken().grammar(Constraint(json_object=True)).matcher()
    (brace, blank) = (tokenizer().encode(each, add_special_tokens=False)[0] for each in "{\t")
    assert matcher.take(brace)
    assert sum(matcher.take(blank) for _ in range(100)) == 24


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
