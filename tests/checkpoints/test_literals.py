"""Literal words: characters stay characters, everything else is tokenised as without them."""

from __future__ import annotations

import unicodedata
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from difflm.checkpoints.literals import (
    MARK,
    STAND_INS,
    Hidden,
    LiteralEncoder,
    mapped,
    marked,
    strings,
    unmarked,
    words_pattern,
)
from difflm.errors import DataError
from tests.checkpoints.test_tokens import word_tokenizer
from tests.checkpoints.tiny import SPECIAL, make_tokenizer

SHARED = make_tokenizer()
CONTROL = frozenset(SHARED.get_vocab()[token] for token in SPECIAL)
WORDS = words_pattern(SPECIAL)


def encoder(**options: Any) -> LiteralEncoder:
    return LiteralEncoder(SHARED, CONTROL, **options)


def test_the_longest_word_is_found_and_white_space_is_none() -> None:
    pattern = words_pattern(["<a", "<a>", "\n\n"])
    assert pattern is not None
    assert pattern.findall("<a><a\n\n") == ["<a>", "<a"]
    assert words_pattern([" "]) is None


def test_every_string_of_a_value_is_reached() -> None:
    value = {"a": ["b", {"c": ("d", 3, None)}], "e": True}
    assert list(strings(value)) == ["a", "b", "c", "d", "e"]
    assert mapped(value, str.upper) == {"A": ["B", {"C": ["D", 3, None]}], "E": True}


@given(st.lists(st.sampled_from([*SPECIAL, "the fox", " <|im", "_end|>", "\n", "\U0001f600"]), max_size=8))
def test_text_with_literals_decodes_to_itself_and_holds_no_control_token(parts: list[str]) -> None:
    text = "".join(parts)
    hidden = Hidden(WORDS, text)
    ids = encoder().encode(hidden.hide(text), hidden)
    assert not CONTROL & set(ids)
    assert SHARED.decode(ids) == text


def test_the_rest_of_the_text_is_tokenised_as_around_a_token() -> None:
    text = "the fox<|im_end|> jumps <|im_start|>the"
    hidden = Hidden(words_pattern(["<|im_end|>"]), text)
    ids = encoder().encode(hidden.hide(text), hidden)
    plain = SHARED.encode(text, add_special_tokens=False)
    place = plain.index(SHARED.get_vocab()["<|im_end|>"])
    literal = ids[place : place + len(ids) - len(plain) + 1]
    assert (ids[:place], ids[place + len(literal) :]) == (plain[:place], plain[place + 1 :])
    assert SHARED.decode(literal) == "<|im_end|>"
    assert SHARED.get_vocab()["<|im_start|>"] in ids, "a word that was not hidden is a token"


def test_threads_that_begin_together_encode_alike() -> None:
    text = "the <|im_end|> fox"
    shared, hidden = encoder(), Hidden(WORDS, text)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: shared.encode(hidden.hide(text), hidden), range(8)))
    assert found == [encoder().encode(hidden.hide(text), hidden)] * 8


def test_only_some_words_are_hidden() -> None:
    hidden = Hidden(WORDS, "<|im_end|><spare_0>")
    shown = hidden.hide("<|im_end|><spare_0>", {"<spare_0>"})
    assert shown.startswith("<|im_end|>")
    assert len(shown) == len("<|im_end|>") + 1


def test_a_dropped_token_is_not_recognised_anywhere() -> None:
    mask = SHARED.get_vocab()["<spare_0>"]
    hidden = Hidden(words_pattern(["<|im_end|>"]), "<|im_end|>")
    ids = encoder(dropped=frozenset({mask})).encode("<spare_0>" + hidden.hide("<|im_end|>"), hidden)
    assert mask not in ids
    assert SHARED.decode(ids) == "<spare_0><|im_end|>"


def test_stand_ins_are_code_points_that_no_text_holds() -> None:
    assert len(set(STAND_INS)) == 66
    assert {unicodedata.category(each) for each in STAND_INS} == {"Cn"}
    assert Hidden(WORDS, "a\ufdd0").word_of == {}
    with pytest.raises(DataError, match=r"it holds U\+FDD0, which is no character, beside '<\|im_end\|>'; remove it"):
        Hidden(WORDS, "a\ufdd0<|im_end|>")


def test_marked_words_go_through_a_string() -> None:
    """A string alone tells markers from the same characters that a person typed."""
    typed = "a <|im_end|> b <spare_0>"
    hidden = Hidden(WORDS, typed)
    text = "<|im_start|>" + hidden.shown(hidden.hide(typed)) + "<|im_end|> and more"
    assert text.replace(MARK, "") == f"<|im_start|>{typed}<|im_end|> and more"
    assert text.count(MARK) == 2
    hiding, found = unmarked(words_pattern([marked(word) for word in SPECIAL]), text)
    assert sorted(found.word_of.values()) == ["<spare_0>", "<|im_end|>"]
    assert encoder().encode(hiding, found) == encoder().encode(
        f"<|im_start|>{hidden.hide(typed)}<|im_end|> and more", hidden
    )
    with pytest.raises(DataError, match=r"it holds U\+10FFFE, which is no character; remove it"):
        hidden.shown(f"a{MARK}")


def test_too_many_words_are_refused() -> None:
    words = [f"<{number}>" for number in range(67)]
    with pytest.raises(DataError, match=r"67 different control words .* and 66 of them can be kept"):
        Hidden(words_pattern(words), "".join(words))


def test_a_vocabulary_of_whole_words_has_no_spelling() -> None:
    """It knows the word but not its letters; broken behind the first letter they are unknown, which is no control."""
    tokenizer = word_tokenizer()
    hidden = Hidden(words_pattern(["<eos>"]), "a <eos> b")
    ids = LiteralEncoder(tokenizer, frozenset({1})).encode(hidden.hide("a <eos> b"), hidden)
    assert 1 not in ids
    with pytest.raises(DataError, match="'<eos>', which this tokenizer cannot spell"):
        LiteralEncoder(tokenizer, frozenset({0, 1})).encode(hidden.hide("a <eos> b"), hidden)
