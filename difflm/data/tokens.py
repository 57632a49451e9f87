"""Documents -> token ids: text plus exactly one end-of-sequence token, with the prompt marked off.

Each learnt message of a conversation becomes a document of its own, which ends with it: what comes before is its
prompt, and what comes behind is not there. So the last block of an answer holds what it holds when it is decoded (the
answer, EOS, fill), and no later turn can be seen from an earlier one, whatever the block size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from difflm.data.documents import Chat, Document
from difflm.errors import DataError, DifflmError

Side = Literal["chosen", "rejected"]
"""Which answer of a preference pair a document is; the rejected one directly follows the chosen one."""


class Encoder(Protocol):
    """Makes ids of texts and conversations; a loaded checkpoint is one."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without added special tokens."""
        ...

    def encode_answers(
        self, messages: Sequence[Any], learnt: Sequence[int], *, tools: Sequence[Any] | None = None
    ) -> list[tuple[list[int], list[int]]]:
        """Return (prompt ids, ids of the answer up to its one EOS) of some messages of a conversation."""
        ...


_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 512, 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDocument:
    """The ids of one document.

    Attributes:
        token: ids, ending in exactly one EOS (a leading BOS included, if one was asked for). A piece of a longer
            text has no EOS, and given ids are what they are.
        num_prompt: how many leading ids are given, not learnt (prompt and BOS).
        is_answer: the document is an answer to a prompt; such a document is never split into several, and may be
            filled to a block multiple.
        trainable: which ids are learnt, where that is not a prompt and the rest; None otherwise.
        side: which answer of a preference pair it is; None for a document of its own.
        content: hash of what the document says, 32 bytes, that of the pair for both its sides; empty where nobody
            splits by it.
        where: "file:line", for messages.
    """

    token: Sequence[int]
    num_prompt: int = 0
    is_answer: bool = False
    trainable: Sequence[bool] | None = None
    side: Side | None = None
    content: bytes = b""
    where: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Special:
    """Ids with a meaning.

    Attributes:
        eos: ends every document; learnt.
        ends: further ids that end an answer (a turn's end in a chat template); they are learnt like `eos`.
        bos: begins every document, given and not learnt; None for none.
        mask: the mask token, refused in data; None skips the check.
        vocabulary: ids are below this; None skips the check of given ids.
    """

    eos: int
    ends: tuple[int, ...] = ()
    bos: int | None = None
    mask: int | None = None
    vocabulary: int | None = None


def tokenise(
    documents: Iterable[Document],
    encode: Callable[[str], list[int]],
    *,
    eos_id: int,
    bos_id: int | None = None,
    mask_id: int | None = None,
) -> list[TokenDocument]:
    """Return the token ids of every document: [BOS] text EOS, or [BOS] prompt completion EOS.

    Prompt and completion are encoded apart, because that is how a prompt arrives at generation time: the ids
    seen in training are then exactly the ids seen in use. EOS ids that `encode` already put at the end are
    replaced by the one EOS.

    Args:
        documents: what to encode, in order.
        encode: text -> ids without added special tokens.
        eos_id: id that ends every document; learnt.
        bos_id: id that begins every document, given and not learnt; None for none. A BOS that `encode`
            already put there is not doubled.
        mask_id: id of the mask token, refused in data; None skips the check.

    Raises:
        DataError: a document whose ids contain the mask id, or a conversation, which needs a chat template; names
            where it stands.
    """
    special = Special(eos=eos_id, bos=bos_id, mask=mask_id)
    groups = token_groups(documents, _Texts(encode), special)
    return [document for group in groups for document in group]


class _Texts:
    """Encodes texts one by one, and no conversation."""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self._encode = encode

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._encode(text) for text in texts]

    def encode_answers(
        self, messages: Sequence[Any], learnt: Sequence[int], *, tools: Sequence[Any] | None = None
    ) -> list[tuple[list[int], list[int]]]:
        raise DataError("a conversation needs a chat template; pass the documents through a checkpoint")


def token_groups(
    documents: Iterable[Document], encoder: Encoder, special: Special
) -> Iterator[tuple[TokenDocument, ...]]:
    """Yield the token ids of every document, encoding many texts at once.

    One document gives one of ids, or one for each learnt message of a conversation, or the two sides of a pair.

    Args:
        documents: what to encode, in order; about a megabyte of them is held at a time.
        encoder: makes the ids.
        special: ids with a meaning.

    Raises:
        DataError: a document whose ids contain the mask id, ids of the data's own that are no tokens, or a conversation
            that the chat template does not take.
    """
    waiting: list[Document] = []
    characters = 0
    for document in documents:
        waiting.append(document)
        characters += len(document.said())
        if len(waiting) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield from _encode(waiting, encoder, special)
            waiting, characters = [], 0
    yield from _encode(waiting, encoder, special)


def _sides(document: Document) -> tuple[Document, ...]:
    pair = document.chosen, document.rejected
    return tuple(side for side in pair if side is not None) or (document,)


def _encode(documents: list[Document], encoder: Encoder, special: Special) -> Iterator[tuple[TokenDocument, ...]]:
    parts = [part for document in documents for part in _sides(document)]
    texts = [text for part in parts for text in (part.text, part.prompt, part.completion) if text]
    ids = iter(encoder.encode_batch(texts))
    for document in documents:
        if document.chosen is None:
            yield tuple(_of_one(document, ids, encoder, special))
            continue
        both = [each for side in _sides(document) for each in _of_one(side, ids, encoder, special)]
        if both[0].token == both[1].token:
            raise DataError(
                f"{document.where}: 'chosen' and 'rejected' become the same token ids, so nothing is preferred; remove "
                "the line"
            )
        chosen, rejected = (replace(each, content=document.content, where=document.where) for each in both)
        yield replace(chosen, side="chosen"), replace(rejected, side="rejected")


def _of_one(
    document: Document, ids: Iterator[list[int]], encoder: Encoder, special: Special
) -> Iterator[TokenDocument]:
    if document.chat is not None:
        yield from _turns(document, document.chat, encoder, special)
    elif document.token is not None:
        yield _given(document, special)
    else:
        prompt = next(ids) if document.prompt else []
        yield _joined(document, prompt, next(ids), special)


def _turns(document: Document, chat: Chat, encoder: Encoder, special: Special) -> Iterator[TokenDocument]:
    """Yield one document for each learnt message of a conversation."""
    try:
        answers = encoder.encode_answers(chat.messages, chat.learnt, tools=chat.tools or None)
    except DifflmError as error:
        raise DataError(f"{document.where}: {error}") from None
    for prompt, answer in answers:
        token = [*prompt, *answer]
        _refuse_mask(token, document, special)
        yield TokenDocument(
            token=token, num_prompt=len(prompt), is_answer=True, content=document.content, where=document.where
        )


def _joined(document: Document, prompt: list[int], answer: list[int], special: Special) -> TokenDocument:
    if special.bos is not None and prompt[:1] != [special.bos]:
        prompt = [special.bos, *prompt]
    if special.bos is not None and prompt == [special.bos] and answer[:1] == [special.bos]:
        answer = answer[1:]
    if document.complete:
        answer = list(answer)
        while answer and answer[-1] == special.eos:
            answer.pop()
        if answer[-1:] not in [[each] for each in special.ends]:
            answer.append(special.eos)
    token = [*prompt, *answer]
    _refuse_mask(token, document, special)
    return TokenDocument(
        token=token,
        num_prompt=len(prompt),
        is_answer=document.prompt is not None,
        content=document.content,
        where=document.where,
    )


def _given(document: Document, special: Special) -> TokenDocument:
    """Return a document that came as ids, after the checks that text cannot fail."""
    token = document.token
    assert token is not None, "only documents with ids come here"
    if special.vocabulary is not None and (max(token) >= special.vocabulary):
        place = next(place for place, token_id in enumerate(token) if token_id >= special.vocabulary)
        raise DataError(
            f"{document.where}: input_ids[{place}] is {token[place]}, but the tokenizer's ids end at "
            f"{special.vocabulary - 1}; the row was made with another tokenizer"
        )
    _refuse_mask(token, document, special)
    learnt = document.trainable
    if learnt is None:
        return TokenDocument(token=token, content=document.content, where=document.where)
    num_prompt = learnt.index(True)
    prefix_only = all(learnt[num_prompt:])
    return TokenDocument(
        token=token,
        num_prompt=num_prompt,
        is_answer=True,
        trainable=None if prefix_only else learnt,
        content=document.content,
        where=document.where,
    )


def _refuse_mask(token: Sequence[int], document: Document, special: Special) -> None:
    if special.mask is not None and special.mask in token:
        raise DataError(
            f"{document.where}: token {token.index(special.mask)} of the document is the mask token "
            f"(id {special.mask}); the text must not encode to it"
        )
