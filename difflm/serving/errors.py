"""What goes wrong, in the form that clients know: status, message, type, param, code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from difflm.errors import DifflmError
from difflm.serving.failures import Draining, EngineDead, EngineFailed, Overloaded, TimedOut, Unanswered

_FIELDS = {
    "max_new_tokens": "max_tokens",
    "block_size": "diffusion.block_size",
    "threshold": "diffusion.threshold",
    "min_accept": "diffusion.min_accept",
    "decoding": "diffusion.decoding",
    "editing_threshold": "diffusion.editing.threshold",
    "max_post_steps": "diffusion.editing.max_post_steps",
    "policy": "diffusion.policy",
}
"""Names of the engine's parameters, as a request knows them."""


@dataclass(eq=False, kw_only=True)
class ApiError(Exception):
    """An answer that says why there is none.

    Attributes:
        status: HTTP status.
        message: one line.
        type: kind of error, as clients know it.
        param: field of the request, if it is one's fault.
        code: for programs.
        headers: of the answer.
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def bad(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error of a request that has to be changed."""
    return ApiError(status=400, message=message, param=param, code=code)


def of_field(param: str, message: str, *, code: str | None = None) -> ApiError:
    """Return the error of one field; the message begins with its name."""
    return bad(f"{param}: {message}", param=param, code=code)


def not_valid(error: ValidationError) -> ApiError:
    """Return the error of a body that does not fit its schema: the first thing that is wrong with it."""
    found = error.errors(include_url=False, include_context=False)
    first = found[0]
    choice = next((place for place, part in enumerate(first["loc"]) if _is_choice(part)), None)
    if choice is not None:  # of several types none fits: the one that fits best says most
        first = max((each for each in found if each["loc"][:choice] == first["loc"][:choice]), key=_depth)
    message = " ".join(first["msg"].split())
    if first["type"] == "json_invalid":
        return bad(f"body: {message}")
    path = ""
    for part in (each for each in first["loc"] if not _is_choice(each)):
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    top = path.split(".")[0].split("[")[0]
    if top == "prompt":
        return of_field("prompt", "give a text, a list of texts, a list of token ids, or a list of such lists")
    if top == "stop":
        return of_field("stop", "give a text, or a list of texts")
    if first["type"] == "missing":
        return bad(f"{path}: it is missing", param=path)
    given = "" if isinstance(first["input"], dict | list) else f"{first['input']!r:.60} cannot be used; "
    return bad(f"{path or 'body'}: {given}{message[0].lower()}{message[1:]}", param=path or None)


def _is_choice(part: str | int) -> bool:
    """Return whether a part of a path is one of several types, and no field."""
    kinds = ("str", "NamedPolicy", "NamedChoice")
    return isinstance(part, str) and (part in kinds or not re.fullmatch(r"[\w-]+", part))


def _depth(error: Mapping[str, Any]) -> int:
    return len(error["loc"])


def not_usable(error: DifflmError, *, where: str | None = None, constraint: str | None = None) -> ApiError:
    """Return the error of a request that the model or the engine refuses.

    Args:
        error: its first word names the parameter.
        where: field that is at fault, if the error does not say.
        constraint: field that says what answers have to match, if one does.
    """
    message = " ".join(str(error).split())
    name, colon, rest = message.partition(":")
    if where is None and colon and re.fullmatch(r"[\w.\[\]]+", name):
        known = constraint if name == "constraint" and constraint else _FIELDS.get(name, name)
        return bad(f"{known}:{rest}", param=known)
    policy = re.match(r"policy [\w-]+", message)
    return bad(message, param="diffusion.policy" if policy else where)


def unanswered(error: Unanswered) -> ApiError:
    """Return the error of a request that was in order and was not answered."""
    message = str(error)
    match error:
        case Overloaded():
            headers = {"Retry-After": str(error.retry_after)}
            return ApiError(status=429, message=message, type="rate_limit_error", code="queue_full", headers=headers)
        case Draining():
            headers = {"Retry-After": "1"}
            return ApiError(status=503, message=message, type="server_error", code="draining", headers=headers)
        case EngineDead():
            return ApiError(status=503, message=message, type="server_error", code="engine_dead")
        case TimedOut():
            headers = {"x-should-retry": "false"}
            return ApiError(status=504, message=message, type="server_error", code="timeout", headers=headers)
        case EngineFailed():
            return ApiError(status=500, message="the engine failed; try again", type="server_error", code="engine")
    return internal()


def internal() -> ApiError:
    """Return the error of a defect; what it is stands in the log."""
    return ApiError(status=500, message="internal error", type="server_error", code="internal")
