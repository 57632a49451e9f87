"""Documents -> token ids: text plus exactly one end-of-sequence token, with the prompt marked off."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from difflm.data.sources import Document
from difflm.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDocument:
    """The ids of one document.

    Attributes:
        token: ids, ending in exactly one EOS (a leading BOS included, if one was asked for).
        num_prompt: how many leading ids are given, not learnt (prompt and BOS).
        is_answer: the document is an answer to a prompt; such a document is never split, and may be
            filled to a block multiple.
        where: "file:line", for messages.
    """

    token: list[int]
    num_prompt: int = 0
    is_answer: bool = False
    where: str = ""


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
        DataError: a document whose ids contain the mask id; names where it stands.
    """
    encoded = []
    for document in documents:
        prompt = encode(document.prompt) if document.prompt else []
        if bos_id is not None and prompt[:1] != [bos_id]:
            prompt = [bos_id, *prompt]
        answer = encode(document.text if document.text is not None else document.completion or "")
        if bos_id is not None and prompt == [bos_id] and answer[:1] == [bos_id]:
            answer = answer[1:]
        while answer and answer[-1] == eos_id:
            answer.pop()
        token = [*prompt, *answer, eos_id]
        if mask_id is not None and mask_id in token:
            raise DataError(
                f"{document.where}: token {token.index(mask_id)} of the document is the mask token (id {mask_id}); "
                "the text must not encode to it"
            )
        encoded.append(
            TokenDocument(
                token=token, num_prompt=len(prompt), is_answer=document.prompt is not None, where=document.where
            )
        )
    return encoded
