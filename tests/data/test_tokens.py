"""Documents to ids: one EOS, the prompt marked off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from difflm.data import Document, TokenDocument, tokenise
from difflm.data.documents import Chat
from difflm.data.tokens import Special, token_groups
from difflm.errors import CheckpointError, DataError

EOS, BOS, MASK = 0, 1, 2


def encode(text: str) -> list[int]:
    """Bytes, with `$` as the end of a sequence and `^` as its beginning."""
    return [{"$": EOS, "^": BOS, "#": MASK}.get(character, ord(character)) for character in text]


def one(document: Document, **options: int) -> TokenDocument:
    return tokenise([document], encode, eos_id=EOS, **options)[0]


@pytest.mark.parametrize("text", ["ab", "ab$", "ab$$"])
def test_text_ends_in_exactly_one_eos(text: str) -> None:
    assert one(Document(text=text)).token == [97, 98, EOS]


def test_an_end_of_another_id_is_an_end() -> None:
    (group,) = token_groups([Document(prompt="x", completion="ab!")], Templated(), Special(eos=EOS, ends=(ord("!"),)))
    assert group[0].token == encode("xab!")
    (group,) = token_groups([Document(text="!$")], Templated(), Special(eos=EOS, ends=(ord("!"),)))
    assert group[0].token == encode("!")


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


class Templated:
    """Encodes a message as its text in brackets, an answer as its text and EOS."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encode(text) for text in texts]

    def encode_answers(
        self, messages: Sequence[Any], learnt: Sequence[int], *, tools: Sequence[Any] | None = None
    ) -> list[tuple[list[int], list[int]]]:
        if tools:
            raise CheckpointError("the chat template knows no tools")
        return [
            (
                encode("".join(f"[{each['content']}]" for each in messages[:number])),
                encode(messages[number]["content"] + "$"),
            )
            for number in learnt
        ]


def talk(*contents: str, learnt: tuple[int, ...], tools: tuple[Any, ...] = (), where: str = "f:3") -> Document:
    messages = tuple({"role": "any", "content": each} for each in contents)
    return Document(chat=Chat(messages=messages, learnt=learnt, tools=tools), where=where)


def groups(*documents: Document) -> list[tuple[TokenDocument, ...]]:
    return list(token_groups(documents, Templated(), Special(eos=EOS, mask=MASK)))


def test_each_learnt_message_is_a_document_that_ends_with_it() -> None:
    read = talk("q", "a", "r", "b", "s", learnt=(1, 3))
    ((first, second),) = groups(read)
    assert first == TokenDocument(
        token=encode("[q]a$"), num_prompt=3, is_answer=True, content=read.content, where="f:3"
    )
    assert (second.token, second.num_prompt) == (encode("[q][a][r]b$"), 9)
    assert second.content == first.content


def test_a_pair_becomes_its_two_sides_with_the_content_of_the_pair() -> None:
    pair = Document(
        chosen=Document(prompt="q", completion="a"), rejected=Document(prompt="q", completion="bb"), where="f:4"
    )
    chats = Document(chosen=talk("q", "a", learnt=(1,)), rejected=talk("q", "b", learnt=(1,)), where="f:5")
    text = Document(text="t")
    found = groups(pair, text, chats)
    assert [len(group) for group in found] == [2, 1, 2]
    chosen, rejected = found[0]
    assert (chosen.token, rejected.token) == (encode("qa$"), encode("qbb$"))
    assert (chosen.side, rejected.side, found[1][0].side) == ("chosen", "rejected", None)
    assert chosen.content == rejected.content == pair.content
    assert [each.where for each in found[0]] == ["f:4", "f:4"]
    assert [each.token for each in found[2]] == [encode("[q]a$"), encode("[q]b$")]


def test_sides_that_a_template_makes_the_same_are_refused() -> None:
    """A template that strips what is written leaves nothing to prefer, a loss of log 2 without a gradient."""
    same = Document(chosen=talk("q", "a", learnt=(1,)), rejected=talk("q", "a", learnt=(1,)), where="f:5")
    with pytest.raises(DataError, match="f:5: 'chosen' and 'rejected' become the same token ids, so nothing is prefe"):
        groups(same)


def test_conversations_that_cannot_be_encoded_are_named() -> None:
    with pytest.raises(DataError, match="f:3: the chat template knows no tools"):
        groups(talk("q", "a", learnt=(1,), tools=({},)))
    with pytest.raises(DataError, match=r"f:3: token 1 of the document is the mask token"):
        groups(talk("#", "a", learnt=(1,)))
    with pytest.raises(DataError, match="f:3: a conversation needs a chat template; pass the documents through"):
        tokenise([talk("q", "a", learnt=(1,))], encode, eos_id=EOS)
