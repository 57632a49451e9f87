"""One document as read: what it says, what of it is learnt, and where it stands. `records.py` makes them of records."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A conversation for the model's chat template.

    Attributes:
        messages: objects with "role", "content" and what else the template reads.
        learnt: numbers of the assistant's messages that are learnt, from 0; at least one.
        tools: descriptions of functions, as JSON schemas.
    """

    messages: tuple[Mapping[str, Any], ...]
    learnt: tuple[int, ...]
    tools: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document as read: `text`, `prompt` and `completion`, `token` ids, a `chat`, or `chosen` and `rejected`.

    Attributes:
        text: plain text, every token of which is learnt; None otherwise.
        prompt: given text, never learnt; None otherwise.
        completion: the answer to `prompt`, learnt; None otherwise.
        token: ids that need no tokenizer; None otherwise.
        trainable: which of the ids are learnt; None learns all.
        chat: a conversation; None otherwise.
        chosen, rejected: the two answers of a preference pair, documents with one answer to the same prompt; None
            otherwise.
        form: name of the records that it was read from, where they are not what the document is.
        complete: the text ends here; False for a piece of a longer text, which gets no EOS.
        where: "file:line", "file:row" or "file", for messages.
    """

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    token: Sequence[int] | None = None
    trainable: Sequence[bool] | None = None
    chat: Chat | None = None
    chosen: Document | None = None
    rejected: Document | None = None
    form: str = ""
    complete: bool = True
    where: str = ""

    def __post_init__(self) -> None:
        """Check our own construction: exactly one of the forms."""
        assert (self.prompt is None) == (self.completion is None), "prompt and completion come together"
        assert (self.chosen is None) == (self.rejected is None), "chosen and rejected come together"
        forms = (self.text, self.prompt, self.token, self.chat, self.chosen)
        assert sum(each is not None for each in forms) == 1, "text, prompt and completion, ids, a chat, or a pair"

    @property
    def kind(self) -> str:
        """Return what records it was read from; the documents of one source are of one kind."""
        if self.form:
            return self.form
        if self.chosen is not None:
            return "preference pairs"
        if self.token is not None:
            return "token ids"
        return "text" if self.text is not None else "prompt + completion" if self.chat is None else "messages"

    @property
    def content(self) -> bytes:
        """Return a hash of what the document says (not of where it stands), 32 bytes: equal documents, equal hashes."""
        if self.chosen is not None and self.rejected is not None:
            return hashlib.sha256(b"pair" + self.chosen.content + self.rejected.content).digest()
        if self.chat is not None:
            parts = [self.chat.messages, self.chat.learnt, self.chat.tools]
            return hashlib.sha256(b"chat" + json.dumps(parts, sort_keys=True).encode("ascii")).digest()
        if self.token is not None:
            digest = hashlib.sha256(b"ids" + array("i", self.token).tobytes())
            digest.update(bytes(self.trainable or ()))
            return digest.digest()
        # JSON keeps the parts apart: ("ab", "c") and ("a", "bc") differ.
        content = json.dumps([self.text, self.prompt, self.completion])
        return hashlib.sha256(content.encode("ascii")).digest()

    @property
    def content_hash(self) -> str:
        """Return `content` as hexadecimal digits."""
        return self.content.hex()

    def said(self) -> str:
        """Return what stands in the document as one text, to compare documents and to measure them; "" for ids."""
        if self.chosen is not None and self.rejected is not None:
            return f"{self.chosen.said()}\n{self.rejected.said()}"
        if self.chat is not None:
            return "\n".join(str(message.get("content") or "") for message in self.chat.messages)
        return f"{self.prompt}\n{self.completion}" if self.prompt is not None else self.text or ""


def describe(value: object) -> str:
    """Return what kind of JSON value this is and how it begins, e.g. "a number (3)"."""
    kinds = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number"}
    shown = json.dumps(value, default=repr)
    kind = "null" if value is None else kinds.get(type(value), "a string" if isinstance(value, str) else "a value")
    return f"{kind} ({shown if len(shown) <= 40 else shown[:37] + '...'})"
