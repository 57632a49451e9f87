"""Documents to ids: one EOS, the prompt marked off."""

from __future__ import annotations

import pytest

from difflm.data import Document, TokenDocument, tokenise
from difflm.errors import DataError

EOS, BOS, MASK = 0, 1, 2


def encode(text: str) -> list[int]:
    """Bytes, with `$` as the end of a sequence and `^` as its beginning."""
    return [{"$": EOS, "^": BOS, "#": MASK}.get(character, ord(character)) for character in text]


def one(document: Document, **options: int) -> TokenDocument:
    return tokenise([document], encode, eos_id=EOS, **options)[0]


@pytest.mark.parametrize("text", ["ab", "ab$", "ab$$"])
def test_text_ends_in_exactly_one_eos(text: str) -> None:
    assert one(Document(text=text)).token == [97, 98, EOS]


def test_an_eos_inside_stays() -> None:
    assert one(Document(text="a$b")).token == [97, EOS, 98, EOS]


def test_prompt_is_marked_off() -> None:
    read = Document(prompt="xyz", completion="ab", where="f:3")
    assert one(read) == TokenDocument(
        token=[120, 121, 122, 97, 98, EOS], num_prompt=3, is_answer=True, content=read.content, where="f:3"
    )


def test_a_prompt_keeps_its_own_eos_tokens() -> None:
    document = one(Document(prompt="x$", completion="a"))
    assert document.token == [120, EOS, 97, EOS]
    assert document.num_prompt == 2


def test_text_has_no_prompt() -> None:
    document = one(Document(text="ab"))
    assert (document.num_prompt, document.is_answer) == (0, False)


def test_empty_prompt_is_still_an_answer() -> None:
    document = one(Document(prompt="", completion="ab"))
    assert (document.token, document.num_prompt, document.is_answer) == ([97, 98, EOS], 0, True)


@pytest.mark.parametrize("mark", ["", "^"])
def test_bos_comes_once_and_is_not_learnt(mark: str) -> None:
    text = one(Document(text=f"{mark}ab"), bos_id=BOS)
    assert (text.token, text.num_prompt, text.is_answer) == ([BOS, 97, 98, EOS], 1, False)
    answer = one(Document(prompt=f"{mark}x", completion="a"), bos_id=BOS)
    assert (answer.token, answer.num_prompt) == ([BOS, 120, 97, EOS], 2)
    empty = one(Document(prompt="", completion="a"), bos_id=BOS)
    assert (empty.token, empty.num_prompt) == ([BOS, 97, EOS], 1)


def test_prompt_and_completion_are_encoded_apart() -> None:
    def merging(text: str) -> list[int]:
        return encode(text.replace("ab", "Z"))

    document = tokenise([Document(prompt="a", completion="b")], merging, eos_id=EOS)[0]
    assert document.token == [97, 98, EOS]


def test_the_mask_token_is_refused_in_data() -> None:
    with pytest.raises(DataError, match=r"f:2: token 1 of the document is the mask token \(id 2\)"):
        tokenise([Document(text="a#", where="f:2")], encode, eos_id=EOS, mask_id=MASK)
    assert one(Document(text="a#")).token == [97, MASK, EOS]
