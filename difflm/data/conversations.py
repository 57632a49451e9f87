"""Records of conversations -> chats: messages, ShareGPT, Alpaca, and prompt + completion as messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from difflm.data.documents import Chat, Document, describe
from difflm.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool")
_FLAGS = ("trainable", "weight", "loss_mask")
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}
"""Whose turn a ShareGPT record means."""
Record = Mapping[str, Any]
Messages = list[dict[str, Any]]


def from_messages(record: Record, where: str) -> Document:
    """Return the document of {"messages": [...], "tools": [...]}.

    Raises:
        DataError: names the message that cannot be used.
    """
    messages, flags = messages_of(record["messages"], where, "messages")
    chat = chat_of(messages, flags, where, name="messages", tools=tools_of(record, where))
    return Document(chat=chat, form="messages", where=where)


def from_sharegpt(record: Record, where: str) -> Document:
    """Return the document of {"conversations": [{"from", "value"}, ...], "system", "tools"}.

    Raises:
        DataError: names the turn that cannot be used.
    """
    messages, flags = sharegpt_messages(record, where)
    chat = chat_of(messages, flags, where, name="conversations", tools=tools_of(record, where))
    return Document(chat=chat, form="ShareGPT", where=where)


def from_alpaca(record: Record, where: str) -> Document:
    """Return the document of {"instruction", "output"} with "input", "system" and "history" if need be.

    Raises:
        DataError: names the field that cannot be used.
    """
    messages = alpaca_messages(record, where)
    messages.append({"role": "assistant", "content": string_of(record, "output", where)})
    chat = chat_of(messages, [None] * len(messages), where, name="alpaca")
    return Document(chat=chat, form="Alpaca", where=where)


def from_prompt(record: Record, where: str) -> Document:
    """Return the document of {"prompt", "completion"}: two texts, or two lists of messages.

    Raises:
        DataError: names the field or message that cannot be used.
    """
    prompt, completion = record["prompt"], record["completion"]
    if not isinstance(prompt, list) and not isinstance(completion, list):
        given = string_of(record, "prompt", where, empty=True)
        return Document(prompt=given, completion=string_of(record, "completion", where), where=where)
    if not (isinstance(prompt, list) and isinstance(completion, list)):
        name, other = ("completion", "prompt") if isinstance(prompt, list) else ("prompt", "completion")
        raise DataError(
            f"{where}: field {name!r} is {describe(record[name])} beside a list of messages in {other!r}; write both "
            "as texts, or both as messages"
        )
    given, _ = messages_of(prompt, where, "prompt")
    answer, flags = messages_of(completion, where, "completion")
    before = [False] * len(given)
    chat = chat_of([*given, *answer], [*before, *flags], where, name="completion", tools=tools_of(record, where))
    return Document(chat=chat, form="prompt + completion in messages", where=where)


def messages_of(value: object, where: str, name: str) -> tuple[Messages, list[bool | None]]:
    """Return (messages, whether each is marked as learnt or not; None where nothing is said).

    Args:
        value: what the field holds.
        where: of the record.
        name: of the field.

    Raises:
        DataError: no list of messages, an unknown role, content that is not text, or a message that says nothing.
    """
    if not isinstance(value, list):
        raise DataError(f"{where}: field {name!r} is {describe(value)}; it must be a list of messages")
    if not value:
        raise DataError(f"{where}: field {name!r} holds no message; remove the line or fill it in")
    messages: Messages = []
    flags: list[bool | None] = []
    for number, each in enumerate(value):
        place = f"{name}[{number}]"
        if not isinstance(each, dict):
            raise DataError(f"{where}: {place} is {describe(each)}; a message is an object with 'role' and 'content'")
        message = {key: item for key, item in each.items() if item is not None and key not in _FLAGS}
        role = message.get("role")
        if role not in ROLES:
            raise DataError(f"{where}: {place}.role is {describe(role)}; it must be one of {', '.join(ROLES)}")
        message["content"] = _content(each.get("content"), f"{where}: {place}.content")
        _check_calls(message, f"{where}: {place}")
        calls = role == "assistant" and message.get("tool_calls")
        if role in ("user", "assistant") and not calls and not message["content"].strip():
            raise DataError(f"{where}: {place} ({role}) says nothing; remove the line or fill it in")
        messages.append(message)
        flags.append(_flag(each, where, place))
    return messages, flags


def _check_calls(message: Record, place: str) -> None:
    """Refuse calls that templates would render as something else, or not at all."""
    if message.get("function_call"):
        raise DataError(
            f"{place}.function_call is {describe(message['function_call'])}, an older form; write it as 'tool_calls'"
        )
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise DataError(f"{place}.tool_calls is {describe(calls)}; it must be a list of calls")
    for number, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(
                f"{place}.tool_calls[{number}] is {describe(call)}; a call has a 'function' with 'name' and 'arguments'"
            )


def _content(value: object, place: str) -> str:
    """Return the text of a message's content: a string, parts of text, or nothing."""
    if value is None:
        return ""
    parts = value if isinstance(value, list) else [{"type": "text", "text": value}]
    for number, part in enumerate(parts):
        if not isinstance(part, dict) or part.get("type") != "text":
            raise DataError(f"{place}[{number}] is {describe(part)}; it must be text ({{'type': 'text', 'text': ...}})")
        if not isinstance(part.get("text"), str):
            raise DataError(f"{place} is {describe(part.get('text'))}; it must be a string or a list of text parts")
    return whole_characters("".join(part["text"] for part in parts), place)


def _flag(message: Record, where: str, place: str) -> bool | None:
    """Return what a message says about being learnt."""
    said: dict[str, bool] = {}
    for name in _FLAGS:
        value = message.get(name)
        if value is None:
            continue
        if value not in (0, 1):
            raise DataError(f"{where}: {place}.{name} is {describe(value)}; a message is learnt (1) or not (0)")
        said[name] = bool(value)
    if len(set(said.values())) > 1:
        raise DataError(f"{where}: {place} is learnt and not learnt ({', '.join(said)}); leave one out")
    return next(iter(said.values()), None)


def chat_of(
    messages: Messages, flags: Sequence[bool | None], where: str, *, name: str, tools: tuple[Any, ...] = ()
) -> Chat:
    """Return a chat in which the assistant's messages are learnt, but those that are marked as not.

    Raises:
        DataError: nothing is learnt, another's message is marked as learnt, or one that answers nothing.
    """
    for number, (message, flag) in enumerate(zip(messages, flags, strict=True)):
        if flag and message["role"] != "assistant":
            raise DataError(
                f"{where}: {name}[{number}] is the {message['role']}'s and marked as learnt; only the assistant's "
                "messages are"
            )
    own = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    learnt = tuple(number for number in own if flags[number] is not False)
    if not learnt:
        raise DataError(f"{where}: no message of the assistant is learnt, so nothing would be; remove the line")
    if learnt[0] == 0:
        raise DataError(
            f"{where}: {name}[0] is the assistant's and answers nothing; begin with another's message, or mark it "
            "(trainable: false)"
        )
    return Chat(messages=tuple(messages), learnt=learnt, tools=tools)


def sharegpt_messages(record: Record, where: str) -> tuple[Messages, list[bool | None]]:
    """Return the messages of "conversations" behind those of "system", and their marks; see `messages_of`.

    Raises:
        DataError: see `messages_of`.
    """
    turns = record["conversations"]
    if isinstance(turns, list):
        turns = [sharegpt_message(turn, where, f"conversations[{number}]") for number, turn in enumerate(turns)]
    messages, flags = messages_of(turns, where, "conversations")
    system = _system(record, where)
    return [*system, *messages], [None] * len(system) + flags


def sharegpt_message(turn: object, where: str, place: str) -> object:
    """Return a ShareGPT turn as a message; what is none is returned as it is.

    Raises:
        DataError: a speaker that is not known, or a call that is no JSON.
    """
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    speaker = turn["from"]
    role = _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise DataError(f"{where}: {place}.from is {describe(speaker)}; it must be one of {', '.join(_SPEAKERS)}")
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    if speaker != "function_call":
        return {**rest, "role": role, "content": turn.get("value")}
    calls = _json(turn.get("value"), f"{where}: {place}.value")
    calls = calls if isinstance(calls, list) else [calls]
    for call in calls:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise DataError(f"{where}: {place}.value holds {describe(call)}; a call has 'name' and 'arguments'")
    return {**rest, "role": role, "tool_calls": [{"type": "function", "function": call} for call in calls]}


def alpaca_messages(record: Record, where: str) -> Messages:
    """Return the messages before the answer: of "system", "history", "instruction" and "input".

    Raises:
        DataError: names the field that cannot be used.
    """
    messages = _system(record, where)
    history = record.get("history") or []
    if not isinstance(history, list):
        raise DataError(f"{where}: field 'history' is {describe(history)}; it must be a list of [question, answer]")
    for number, turn in enumerate(history):
        if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(each, str) and each for each in turn)):
            raise DataError(f"{where}: history[{number}] is {describe(turn)}; it must be [question, answer]")
        question, answer = (whole_characters(each, f"{where}: history[{number}]") for each in turn)
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    asked = string_of(record, "instruction", where)
    given = "" if record.get("input") is None else string_of(record, "input", where, empty=True)
    return [*messages, {"role": "user", "content": f"{asked}\n{given}" if given.strip() else asked}]


def _system(record: Record, where: str) -> Messages:
    text = "" if record.get("system") is None else string_of(record, "system", where, empty=True)
    return [{"role": "system", "content": text}] if text.strip() else []


def tools_of(record: Record, where: str) -> tuple[Any, ...]:
    """Return the descriptions of functions in "tools": a list, or the JSON text of one.

    Raises:
        DataError: something else.
    """
    value = record.get("tools")
    if isinstance(value, str):
        value = _json(value, f"{where}: field 'tools'") if value.strip() else None
    if value is None:
        return ()
    if not isinstance(value, list):
        raise DataError(f"{where}: field 'tools' is {describe(value)}; it must be a list of functions")
    for number, each in enumerate(value):
        if not isinstance(each, dict):
            raise DataError(f"{where}: tools[{number}] is {describe(each)}; a function is described by an object")
    return tuple(value)


def _json(value: object, place: str) -> Any:
    if isinstance(value, dict | list):
        return value
    try:
        return json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        raise DataError(f"{place} is {describe(value)}; it must be JSON") from None


def string_of(record: Record, name: str, where: str, *, empty: bool = False) -> str:
    """Return the text of a field.

    Raises:
        DataError: no text, or none in it where it may not be empty.
    """
    value = record[name]
    if not isinstance(value, str):
        raise DataError(f"{where}: field {name!r} is {describe(value)}; it must be a string")
    # An empty prompt is a way to say "no prompt"; nothing to learn is a mistake.
    if not empty and not value.strip():
        raise DataError(f"{where}: field {name!r} is empty; remove the line or fill it in")
    return whole_characters(value, f"{where}: field {name!r}")


def whole_characters(text: str, place: str) -> str:
    """Return the text.

    Raises:
        DataError: it holds half of a surrogate pair.
    """
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{place} holds half of a surrogate pair, which is not text; repair the line")
    return text
