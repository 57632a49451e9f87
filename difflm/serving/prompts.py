"""Prompts and conversations -> token ids. Slow for long texts: to be called off the event loop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from difflm.errors import DifflmError
from difflm.serving.errors import bad, not_usable, of_field
from difflm.serving.limits import Limits
from difflm.serving.schema import CompletionRequest, Message, ToolCall

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel


def prompts_of(loaded: LoadedModel, asked: CompletionRequest, limits: Limits) -> list[list[int]]:
    """Return the ids of each prompt of a request.

    Args:
        loaded: the model.
        asked: the body.
        limits: bounds.

    Raises:
        ApiError: no prompt, too many, or one that is not to be encoded.
    """
    given = asked.prompt
    if given is None:
        raise of_field("prompt", "it is missing; give a text or token ids")
    if isinstance(given, list) and not given:
        raise of_field("prompt", "the list is empty; give at least one prompt")
    prompts: Sequence[str | list[int]]
    if isinstance(given, str):
        prompts = [given]
    elif isinstance(given[0], int):
        prompts = [[each for each in given if isinstance(each, int)]]
    else:
        prompts = [each for each in given if not isinstance(each, int)]
    if len(prompts) * (asked.n or 1) > limits.answers:
        raise of_field(
            "prompt", f"{len(prompts)} prompts with n {asked.n or 1}; give at most {limits.answers} altogether"
        )
    return [each if isinstance(each, list) else encoded(loaded, each, where="prompt") for each in prompts]


def encoded(loaded: LoadedModel, text: str, *, where: str) -> list[int]:
    """Return the ids of a text.

    Args:
        loaded: the model.
        text: as given.
        where: field that it is from.

    Raises:
        ApiError: no tokenizer, or a text that is not to be encoded.
    """
    try:
        return loaded.encode_batch([text])[0]  # of all ways the one that leaves the interpreter to others meanwhile
    except DifflmError as error:
        raise not_usable(error, where=where) from None


def conversation_ids(
    loaded: LoadedModel, messages: Sequence[Message], limits: Limits, *, tools: Sequence[Any] = ()
) -> list[int]:
    """Return the ids of a conversation in the model's chat template, ready for the answer.

    Args:
        loaded: the model.
        messages: of the request.
        limits: bounds.
        tools: descriptions of functions that the template is shown.

    Raises:
        ApiError: too many messages, content that is no text, or a template that refuses them.
    """
    if len(messages) > limits.messages:
        raise of_field("messages", f"{len(messages)} messages; give at most {limits.messages}")
    plain = [_plain(message, f"messages[{number}]") for number, message in enumerate(messages)]
    try:
        ids = loaded.encode_chat(plain, tools=tools or None)
        calling = next((number for number, message in enumerate(plain) if "tool_calls" in message), None)
        if calling is not None:
            silent = [{name: value for name, value in each.items() if name != "tool_calls"} for each in plain]
            try:
                left_out = loaded.encode_chat(silent, tools=tools or None) == ids
            except DifflmError:  # the template refuses the conversation without its calls, so it reads them
                left_out = False
            if left_out:
                raise of_field(f"messages[{calling}].tool_calls", "the model's chat template does not read them")
        return ids
    except DifflmError as error:
        raise bad(f"messages: {_without_path(loaded, error)}", param="messages") from None


def _without_path(loaded: LoadedModel, error: Exception) -> str:
    """Return an error without the model's folder, which is no business of a client."""
    return " ".join(str(error).split()).removeprefix(f"{loaded.path}: ")


def _plain(message: Message, where: str) -> dict[str, Any]:
    """Return a message as chat templates know it."""
    extra: dict[str, Any] = message.model_extra or {}
    for name in ("function_call", "audio"):
        if extra.get(name):
            raise of_field(f"{where}.{name}", "it is not supported by this server; leave it out")
    if message.role == "function":
        raise of_field(f"{where}.role", "'function' is not supported by this server; use 'tool'")
    role = "system" if message.role == "developer" else message.role
    plain: dict[str, Any] = {"role": role}
    if message.tool_calls:
        if role != "assistant":
            raise of_field(f"{where}.tool_calls", f"a message of {role!r} has none; leave them out")
        plain["tool_calls"] = [_called(call, f"{where}.tool_calls[{n}]") for n, call in enumerate(message.tool_calls)]
    if role == "tool":
        if not message.tool_call_id:
            raise of_field(f"{where}.tool_call_id", "it is missing; give the id of the call whose result this is")
        plain["tool_call_id"] = message.tool_call_id
    plain |= {name: extra[name] for name in ("name", "reasoning_content") if isinstance(extra.get(name), str)}
    plain["content"] = "" if message.tool_calls and message.content is None else _text(message, where)
    return plain


def _called(call: ToolCall, where: str) -> dict[str, Any]:
    """Return a call, its arguments as an object."""
    try:
        arguments: Any = json.loads(call.function.arguments)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise of_field(f"{where}.function.arguments", "they are no JSON object; give one, written as text")
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _text(message: Message, where: str) -> str:
    if message.content is None:
        raise of_field(f"{where}.content", "it is missing; give a text, or a list of text parts")
    if isinstance(message.content, str):
        return message.content
    for number, part in enumerate(message.content):
        if part.type != "text":
            place = f"{where}.content[{number}].type"
            raise of_field(place, f"{part.type!r:.40} is not supported; give parts of type 'text'")
        if part.text is None:
            raise of_field(f"{where}.content[{number}].text", "it is missing")
    return "".join(part.text or "" for part in message.content)
