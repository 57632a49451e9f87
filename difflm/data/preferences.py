"""Records of preferences -> pairs: two answers to one prompt, which is named or is what both begin with."""

from __future__ import annotations

from typing import Any

from difflm.data.conversations import (
    Messages,
    Record,
    alpaca_messages,
    chat_of,
    messages_of,
    sharegpt_message,
    sharegpt_messages,
    string_of,
    tools_of,
)
from difflm.data.documents import Document, describe
from difflm.errors import DataError


def from_preference(record: Record, where: str) -> Document:
    """Return the pair in a record with "chosen" and "rejected".

    The prompt is "prompt" (text or messages), "conversations" (ShareGPT) or "instruction" with its fields (Alpaca);
    without one it is the longest beginning that two lists of messages share. Two texts with a prompt that is a text
    are taken as they are; everything else goes through the chat template.

    Raises:
        DataError: no prompt, equal answers, an answer of more than one message, or one that is marked as not learnt.
    """
    sides = (record["chosen"], record["rejected"])
    if sides[0] == sides[1]:
        raise DataError(f"{where}: 'chosen' and 'rejected' are the same, so nothing is preferred; remove the line")
    named = [name for name in ("prompt", "conversations", "instruction") if record.get(name) is not None]
    if len(named) > 1:
        raise DataError(f"{where}: fields {', '.join(map(repr, named))} name two prompts; leave one out")
    if all(isinstance(side, str) for side in sides) and (not named or isinstance(record.get("prompt"), str)):
        return _texts(record, where)
    return _chats(record, where, named)


def _texts(record: Record, where: str) -> Document:
    if record.get("prompt") is None:
        raise DataError(
            f"{where}: 'chosen' and 'rejected' are texts without a 'prompt'; write what both answer into it, or write "
            "both as lists of messages"
        )
    prompt = string_of(record, "prompt", where, empty=True)
    chosen, rejected = (
        Document(prompt=prompt, completion=string_of(record, name, where), where=where)
        for name in ("chosen", "rejected")
    )
    return Document(chosen=chosen, rejected=rejected, where=where)


def _chats(record: Record, where: str, named: list[str]) -> Document:
    given = _prompt(record, where, named)
    whole = {name: _behind(given, _answer(record[name], where, name)) for name in ("chosen", "rejected")}
    shared = _num_shared(whole["chosen"], whole["rejected"])
    tools = tools_of(record, where)
    documents: dict[str, Document] = {}
    for name, messages in whole.items():
        own = messages[shared:]
        if shared == 0:
            raise DataError(f"{where}: 'chosen' and 'rejected' begin with different messages; give their 'prompt'")
        if len(own) != 1 or own[0]["role"] != "assistant":
            said = ", ".join(message["role"] for message in own) or "nothing"
            raise DataError(
                f"{where}: behind what both sides share, {name!r} holds {said}; it must be one message of the assistant"
            )
        flags = [*[False] * shared, True]
        documents[name] = Document(chat=chat_of(messages, flags, where, name=name, tools=tools), where=where)
    return Document(chosen=documents["chosen"], rejected=documents["rejected"], form="preference chats", where=where)


def _prompt(record: Record, where: str, named: list[str]) -> Messages:
    """Return the messages of the prompt that a record names."""
    if "conversations" in named:
        return sharegpt_messages(record, where)[0]
    if "instruction" in named:
        return alpaca_messages(record, where)
    if not named:
        return []
    prompt = record["prompt"]
    if isinstance(prompt, str):
        return [{"role": "user", "content": string_of(record, "prompt", where)}]
    return messages_of(prompt, where, "prompt")[0]


def _answer(value: Any, where: str, name: str) -> Messages:
    """Return the messages of one side: a text, a message or a ShareGPT turn is one of the assistant."""
    if isinstance(value, str):
        value = [{"role": "assistant", "content": value}]
    elif isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise DataError(f"{where}: field {name!r} is {describe(value)}; it must be a text or a list of messages")
    messages, flags = messages_of([sharegpt_message(each, where, name) for each in value], where, name)
    if flags and flags[-1] is False:
        raise DataError(
            f"{where}: {name}[{len(flags) - 1}] is marked as not learnt, and of a pair both answers are; remove the "
            "mark, or the line"
        )
    return messages


def _behind(given: Messages, messages: Messages) -> Messages:
    """Return the prompt and one side; many data sets repeat the prompt in both sides."""
    for start in range(len(messages) - len(given) + 1 if given else 0):
        # A system message may stand before a prompt that is one text.
        if messages[start : start + len(given)] == given and all(each["role"] == "system" for each in messages[:start]):
            return messages
    return [*given, *messages]


def _num_shared(one: Messages, other: Messages) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((number for number, (left, right) in pairs if left != right), min(len(one), len(other)))
