"""Functions that a conversation may call: what the template is shown, and how its calls are read from an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from difflm.errors import DifflmError
from difflm.serving.calls import CallFormat, GrowingCalls
from difflm.serving.constraints import Wanted
from difflm.serving.errors import of_field
from difflm.serving.forcing import CallForm, calls_constraint, form_of
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
        forced: what makes answers calls; None where the model chooses.
        named: whether the request says which function is called.
    """

    tools: Sequence[Any] = ()
    names: tuple[str, ...] = ()
    format: CallFormat | None = None
    single: bool = False
    forced: Wanted | None = None
    named: bool = False

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
    _form: CallForm | None = field(default=None, init=False)

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

    def form(self) -> CallForm:
        """Return all that a call consists of, for answers that have to be calls.

        Raises:
            ApiError: as `format`; and calls whose arguments stand nowhere, or no grammar library.
        """
        if self._form is None:
            self._form = _form_of(self.loaded, self.format())
        return self._form


def _form_of(loaded: LoadedModel, format_: CallFormat) -> CallForm:
    """Return the form of calls."""
    try:
        is_mark = loaded.grammars().is_mark
        [(_, answer)] = loaded.encode_answers([_ASKED, _CALLING], [1], tools=_PROBE)
    except DifflmError as error:
        raise of_field("tool_choice", str(error)) from None
    tokens = [token for token in answer if token not in loaded.config.eos_token_ids]
    marked = any(map(is_mark, tokens))
    form = form_of(
        tokens,
        is_mark,
        lambda tokens: loaded.decode(tokens, skip_special_tokens=False),
        name=_NAME,
        # Marks that are no text leave nothing between two calls by which they are told apart.
        between="\n" if format_.opening else None if marked else "; ",
    )
    if form is None:
        raise of_field("tool_choice", "the form of the model's calls has no place for arguments; use 'auto'")
    return form


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
    offer = replace(shown(tools, template), single=asked.parallel_tool_calls is False)
    return offer if choice in (None, "auto") else _forced(offer, tools, choice, template.form())


def _forced(offer: Offer, tools: Sequence[Tool], choice: object, form: CallForm) -> Offer:
    """Return an offer of which a function has to be called: any one, or the one that is named, once."""
    name = choice.function.name if isinstance(choice, NamedChoice) else None
    functions = {each.function.name: each.function.parameters for each in tools if name in (None, each.function.name)}
    single = offer.single or name is not None
    try:
        constraint = calls_constraint(form, functions, single=single)
    except DifflmError as error:
        raise of_field("tools", str(error)) from None
    return replace(offer, forced=Wanted(constraint, "tools"), named=name is not None, single=single)


def or_else(offer: Offer, asked: ChatRequest, template: ToolTemplate, want: Wanted) -> Wanted:
    """Return what answers have to match that are calls or, where the model calls nothing, what was asked for.

    Args:
        offer: of the request.
        asked: the body.
        template: of the model.
        want: of the request.

    Raises:
        ApiError: something else than JSON is asked for, or functions whose arguments no grammar can describe.
    """
    if offer.forced is not None:
        return offer.forced
    if want.constraint.field not in ("json_object", "json_schema"):
        raise of_field(
            want.param,
            "beside tools that may be called only JSON can be asked for; give tool_choice 'none', or no tools",
        )
    functions = {each.function.name: each.function.parameters for each in asked.tools or ()}
    try:
        made = calls_constraint(template.form(), functions, single=offer.single, otherwise=want.constraint.text)
    except DifflmError as error:
        raise of_field("tools", str(error)) from None
    return Wanted(made, want.param)


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
