"""What an answer has to match, under all the names that clients have for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from difflm.checkpoints.constraints import Constraint
from difflm.decode.matching import Matcher
from difflm.errors import DifflmError
from difflm.serving.errors import ApiError, bad, of_field
from difflm.serving.schema import Asked, ResponseFormat, StructuredOutputs

FIELDS: Mapping[str, str] = {
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json_schema",
    "regex": "regex",
    "grammar": "grammar",
}
"""Fields of other servers: name -> what it holds; "choice" is a list of texts."""
STRUCTURED: Mapping[str, str] = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
    "json_object": "json_object",
}
"""The same inside of `structured_outputs`."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the answers of a request have to match.

    Attributes:
        constraint: not compiled.
        param: field of the request that says so.
    """

    constraint: Constraint
    param: str

    def refused(self, error: DifflmError) -> ApiError:
        """Return the error of a constraint that cannot be used: under the name that the request has for it."""
        name, colon, rest = " ".join(str(error).split()).partition(": ")
        return of_field(self.param, rest if colon and re.fullmatch(r"\w+", name) else f"{name}{colon}{rest}")

    def exhausted(self) -> ApiError:
        """Return the error of an answer that cannot go on."""
        return of_field(
            self.param,
            "an answer came to a place where no token of the model goes on with it, or where finding one takes more "
            "work than there is for it; change it",
        )


class Later:
    """Stands for a grammar that is not compiled yet; see `difflm.decode.matching.Grammar`."""

    def matcher(self) -> Matcher:
        """Fail: no answer begins before the grammar is there."""
        raise AssertionError("the grammar is compiled before its request is handed on")


def wanted(asked: Asked) -> Wanted | None:
    """Return what the answers of a request have to match, if anything.

    Args:
        asked: the body.

    Raises:
        ApiError: several constraints, or one that is none; naming the field.
    """
    found = [*_of_format(asked.response_format), *_of_structured(asked.structured_outputs)]
    own = asked.model_dump(include=set(FIELDS), exclude_none=True)
    found += [(name, FIELDS[name], value) for name, value in own.items()]
    if not found:
        return None
    param, kind, value = found[0]
    if len(found) > 1:
        raise of_field(found[1][0], f"{param} is given as well; give one of them")
    try:
        return Wanted(_constraint(param, kind, value), param)
    except DifflmError as error:
        raise of_field(param, " ".join(str(error).split()).partition(": ")[2]) from None


def _of_format(format_: ResponseFormat | None) -> list[tuple[str, str, Any]]:
    """Return field, kind and value of a response format."""
    if format_ is None:
        return []
    named = format_.json_schema
    if format_.type == "json_schema":
        if named is None:
            raise bad("response_format.json_schema: it is missing", param="response_format.json_schema")
        if named.definition is None:
            where = "response_format.json_schema.schema"
            raise bad(f'{where}: it is missing; for any object ask for the type "json_object"', param=where)
        return [("response_format.json_schema.schema", "json_schema", named.definition)]
    if named is not None:
        raise of_field("response_format.json_schema", f'it needs the type "json_schema", not {format_.type!r}')
    if format_.type == "text":
        return []
    if format_.definition is not None:
        return [("response_format.schema", "json_schema", format_.definition)]
    return [("response_format", "json_object", True)]


def _of_structured(given: StructuredOutputs | None) -> list[tuple[str, str, Any]]:
    """Return field, kind and value of each constraint in `structured_outputs`."""
    if given is None:
        return []
    for name, value in (given.model_extra or {}).items():
        if value is not None:
            raise of_field(f"structured_outputs.{name}", f"it is not served; give one of {', '.join(STRUCTURED)}")
    values = given.model_dump(by_alias=True, exclude_none=True)
    found = [
        (f"structured_outputs.{name}", kind, values[name])
        for name, kind in STRUCTURED.items()
        if values.get(name, False) is not False
    ]
    if not found:
        raise of_field("structured_outputs", f"it says nothing; give one of {', '.join(STRUCTURED)}")
    return found


def _constraint(param: str, kind: str, value: Any) -> Constraint:
    if kind == "choice":
        return Constraint(regex=_alternatives(param, value))
    return Constraint(json_object=True) if kind == "json_object" else Constraint(**{kind: value})


def _alternatives(param: str, texts: Sequence[str]) -> str:
    """Return an expression that matches each of the texts."""
    if not texts:
        raise of_field(param, "it is empty; give the texts among which to choose")
    return "|".join(re.sub(r"[\\.+*?()|\[\]{}^$#&\-~]", r"\\\g<0>", text) for text in texts)
