"""Which ids a matcher allows, as a tensor."""

from __future__ import annotations

from difflm.decode.matching import Grammar, allowed_ids
from tests.decode.grammars import Words

WORDS = Words(((1, 2), (1, 9)), 13)


def test_bits_are_ids_and_ends_stand_where_the_text_is_whole() -> None:
    matcher = WORDS.matcher()
    first = allowed_ids(matcher, (3,), (), 13)
    assert first is not None
    assert first.nonzero().flatten().tolist() == [1]
    assert matcher.take(1)
    second = allowed_ids(matcher, (3,), (9,), 13)
    assert second is not None
    assert second.nonzero().flatten().tolist() == [2], "9 is suppressed, 3 would end in the middle"
    assert matcher.take(2)
    last = allowed_ids(matcher, (3, 9), (), 13)
    assert last is not None
    assert last.nonzero().flatten().tolist() == [3, 9]


def test_nothing_allowed_is_none_and_missing_bits_are_not_allowed() -> None:
    matcher = WORDS.matcher()
    assert allowed_ids(matcher, (3,), (1,), 13) is None
    wide = allowed_ids(matcher, (30,), (), 40)
    assert wide is not None
    assert len(wide) == 40
    assert wide.nonzero().flatten().tolist() == [1]


def test_a_grammar_is_known_by_what_it_can_do() -> None:
    assert isinstance(WORDS, Grammar)
    assert not isinstance("[a-z]+", Grammar)
