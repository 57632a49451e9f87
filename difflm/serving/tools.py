"""Functions that a conversation may call: what the template is shown, and how its calls are read from an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from difflm.errors import DifflmError
from difflm.serving.calls import CallFormat, GrowingCalls
from difflm.serving.errors import of_field
from difflm.serving.schema import ChatRequest, NamedChoice, Tool

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel

_NAME, _KEY, _VALUE = "probe_function", "probe_key", "probe_value"
_ASKED: Mapping[str, Any] = {"role": "user", "content": "probe"}
_PROBE: Sequence[Mapping[str, Any]] = (
    {
        "type": "function",
        "function": {
            "name": _NAME,
            "description": "probe",
            "parameters": {"type": "object", "properties": {_KEY: {"type": "string"}}, "required": [_KEY]},
        },
    },
)
_CALLING: Mapping[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "probe0000", "type": "function", "function": {"name": _NAME, "arguments": {_KEY: _VALUE}}},
    ],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Functions that an answer may call.

    Attributes:
        tools: descriptions for the template; empty for none.
        names: of the functions.
        format: of calls; None where there are none.
        single: only the first call counts.
    """

    tools: Sequence[Any] = ()
    names: tuple[str, ...] = ()
    format: CallFormat | None = None
    single: bool = False

    def reader(self) -> GrowingCalls | None:
        """Return what reads the calls of one answer; None without functions."""
        if self.format is None:
            return None
        return GrowingCalls(format=self.format, names=self.names, single=self.single)


@dataclass(slots=True)
class ToolTemplate:
    """How the chat template of a model writes calls, found by rendering one; asked for at the first request with tools.

    Attributes:
        loaded: the model.
    """

    loaded: LoadedModel
    _found: CallFormat | str | None = field(default=None, init=False)

    def format(self) -> CallFormat:
        """Return the format of calls.

        Raises:
            ApiError: the template reads no functions, or writes calls in a form that is not read here.
        """
        if self._found is None:
            self._found = _format_of(self.loaded)
        if isinstance(self._found, str):
            raise of_field("tools", self._found)
        return self._found


def _format_of(loaded: LoadedModel) -> CallFormat | str:
    """Return the format of calls, or why there is none."""
    try:
        shown = loaded.encode_chat([_ASKED], tools=_PROBE) != loaded.encode_chat([_ASKED])
        if not shown:
            return "the model's chat template does not read them; leave them out"
        [(_, answer)] = loaded.encode_answers([_ASKED, _CALLING], [1], tools=_PROBE)
    except DifflmError as error:
        reason = " ".join(str(error).split()).removeprefix(f"{loaded.path}: ")
        return f"the model's chat template renders no call ({reason}); leave them out"
    written = loaded.decode(answer).strip()
    start, end = written.find("{"), written.rfind("}") + 1
    try:
        read: Any = json.loads(written[start:end])
    except (ValueError, RecursionError):
        read = None
    opening, closing = written[:start].strip(), written[end:].strip()
    if isinstance(read, dict) and read.get("name") == _NAME and bool(opening) == bool(closing):
        for name in ("arguments", "parameters"):
            if read.get(name) == {_KEY: _VALUE}:
                return CallFormat(opening=opening, closing=closing, arguments=name)
    return (
        f"the model's chat template writes a call as {written!r:.120}, which is not read here: calls are an object "
        "with 'name' and 'arguments' or 'parameters', alone or between two marks; leave them out"
    )


def offer_of(asked: ChatRequest, template: ToolTemplate) -> Offer:
    """Return the functions that an answer may call.

    Args:
        asked: the body.
        template: of the model.

    Raises:
        ApiError: functions that cannot be used, or a choice among them that cannot be made.
    """
    tools, choice = asked.tools or [], asked.tool_choice
    if not tools:
        if choice not in (None, "none", "auto"):
            raise of_field("tool_choice", "it needs tools")
        return Offer()
    names = _names(tools)
    if isinstance(choice, NamedChoice) and choice.function.name not in names:
        raise of_field("tool_choice", f"{choice.function.name!r:.80} is none of tools; give one of {', '.join(names)}")
    if choice == "none":
        return Offer()
    if choice not in (None, "auto"):
        raise of_field(
            "tool_choice", "a call that has to be made needs constrained output, which is not served; use 'auto'"
        )
    return replace(shown(tools, template), single=asked.parallel_tool_calls is False)


def shown(tools: Sequence[Tool], template: ToolTemplate) -> Offer:
    """Return an offer of functions, any number of which may be called.

    Args:
        tools: of the request.
        template: of the model.

    Raises:
        ApiError: two of one name, or a template that does not read them.
    """
    if not tools:
        return Offer()
    described = [tool.model_dump(exclude_none=True) for tool in tools]
    return Offer(tools=described, names=_names(tools), format=template.format())


def _names(tools: Sequence[Tool]) -> tuple[str, ...]:
    names = [tool.function.name for tool in tools]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise of_field(f"tools[{number}].function.name", f"{name!r} is given twice")
    return tuple(names)
