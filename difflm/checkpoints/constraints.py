"""What an answer may look like: a constraint of a request. No grammar library, no tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from difflm.errors import RequestError

MOST_CHARACTERS = 1 << 16
"""Characters of a schema, an expression or a grammar."""


_DATA = ("const", "default", "enum", "examples")
"""Keywords that hold values, no schemas."""
_NAMED = ("$defs", "definitions", "patternProperties", "properties")
"""Keywords that hold schemas by names, which are no keywords."""
_OPPOSITE: Mapping[str, tuple[str, str]] = {
    "exclusiveMinimum": ("maximum", "exclusiveMaximum"),
    "exclusiveMaximum": ("minimum", "exclusiveMinimum"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """What the text of an answer has to match, as a whole; exactly one of these.

    An answer that an EOS ends matches; one that ends at its limit is the beginning of one that does. The grammar is
    over the answer alone, without the prompt. Needs the extra `constrain` (llguidance).

    Attributes:
        json_object: any JSON object.
        json_schema: JSON that a schema allows: an object or the text of one. Keywords that cannot be enforced are
            refused. Properties come in the schema's order.
        regex: an expression in the syntax of Rust's regex crate: no look-around, no back-references; no anchors needed.
        grammar: a grammar in llguidance's dialect of Lark; it begins at the rule `start`.

    Raises:
        RequestError: none of them or several, another type, or too long.
    """

    json_object: bool = False
    json_schema: Mapping[str, Any] | str | None = None
    regex: str | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        if self.json_object not in (True, False):
            raise RequestError(f"json_object: {self.json_object!r:.40} is not a boolean; give True or False")
        given = {"json_object": self.json_object or None, "json_schema": self.json_schema}
        given |= {"regex": self.regex, "grammar": self.grammar}
        named = [name for name, value in given.items() if value is not None]
        if len(named) != 1:
            what = " and ".join(named) if named else "nothing"
            raise RequestError(f"constraint: {what} given; give one of {', '.join(given)}")
        for name in ("regex", "grammar"):
            if given[name] is not None and not isinstance(given[name], str):
                raise RequestError(f"{name}: {given[name]!r:.40} is no text; give a string")
        if len(self.text) > MOST_CHARACTERS:
            raise RequestError(f"{self.field}: {len(self.text)} characters; give at most {MOST_CHARACTERS}")

    @property
    def field(self) -> str:
        """Name of what is given."""
        names = ("json_schema", "regex", "grammar")
        values = (self.json_schema, self.regex, self.grammar)
        return next((name for name, value in zip(names, values, strict=True) if value is not None), "json_object")

    @property
    def text(self) -> str:
        """Schema, expression or grammar as text; with `field` it tells equal constraints.

        Raises:
            RequestError: a schema that is no JSON object.
        """
        if self.json_object:
            return '{"type":"object"}'
        if self.json_schema is not None:
            return json.dumps(_schema(self.json_schema), separators=(",", ":"))
        return self.regex if self.regex is not None else self.grammar or ""


def _schema(given: Mapping[str, Any] | str) -> dict[str, Any]:
    """Return a schema as an object of JSON; a copy, so that nobody changes it behind a request."""
    try:
        value = json.loads(given if isinstance(given, str) else json.dumps(given, allow_nan=False))
    except (ValueError, TypeError, RecursionError) as error:
        # Without the schema itself: writing it down could fail for the same reason.
        raise RequestError(f"json_schema: it is no JSON ({error}); give an object of JSON") from None
    if not isinstance(value, dict):
        raise RequestError(f"json_schema: {given!r:.40} is no object; give a JSON schema")
    schema = cast("dict[str, Any]", value)
    check_schema("json_schema", schema)
    return schema


def check_schema(field: str, schema: object) -> None:
    """Refuse what llguidance takes and does not enforce, as far as one object of a schema shows it.

    Args:
        field: that holds the schema, for the error.
        schema: a value of JSON.

    Raises:
        RequestError: naming field and keyword.
    """
    parts: list[tuple[object, bool]] = [(schema, False)]
    while parts:
        part, names = parts.pop()
        if isinstance(part, list):
            parts += [(each, False) for each in cast("list[object]", part)]
        if not isinstance(part, Mapping):
            continue
        known = cast("Mapping[str, object]", part)
        parts += [(value, key in _NAMED and not names) for key, value in known.items() if names or key not in _DATA]
        if not names:
            _check_count(field, known)
            _check_bounds(field, known)


def _check_count(field: str, schema: Mapping[str, object]) -> None:
    """Refuse a number of properties that the same one, written again and again, would reach."""
    least, required = schema.get("minProperties"), schema.get("required")
    distinct = 1 + (len(cast("list[object]", required)) if isinstance(required, list) else 0)
    if isinstance(least, int) and least > distinct:
        raise RequestError(
            f"{field}: minProperties {least} cannot be enforced, as one name may be written twice; "
            "give the names in 'required'"
        )


def _check_bounds(field: str, schema: Mapping[str, object]) -> None:
    """Refuse ranges of numbers between an integer, which is not in them, and the fractions next to it.

    The library takes the integer itself there: 0 for "exclusiveMinimum": 0, "maximum": 0.5.
    """
    if schema.get("type") == "integer":
        return
    for name, others in _OPPOSITE.items():
        bound = _number(schema.get(name))
        for other in others:
            end = _number(schema.get(other))
            if bound is not None and end is not None and bound != end and math.trunc(end) == bound:
                raise RequestError(
                    f"{field}: {name} {bound:g} cannot be enforced beside {other} {end:g}; "
                    "give a bound that is no integer, or one that is included"
                )


def _number(value: object) -> float | None:
    """Return a finite number, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
