"""Grammars of answers that are calls of functions and nothing else, in the form of the model's chat template."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from difflm.checkpoints.constraints import Constraint, check_schema
from difflm.checkpoints.grammars import JSON_OPTIONS
from difflm.errors import RequestError

Piece = str | int
"""Of a call as a template writes it: a text, or the id of a special token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallForm:
    """How a template writes a call.

    Attributes:
        before, after: what stands around the arguments.
        name: of the function whose call it is; replaced by others.
        between: what separates two calls; None where there can only be one.
    """

    before: tuple[Piece, ...]
    after: tuple[Piece, ...]
    name: str
    between: str | None

    def written(self, pieces: Sequence[Piece], name: str) -> str:
        """Return pieces as a grammar writes them, with the name of a function."""
        quoted, other = json.dumps(self.name), json.dumps(name)
        texts = (f"<[{each}]>" if isinstance(each, int) else _literal(each.replace(quoted, other)) for each in pieces)
        return " ".join(each for each in texts if each != '""')


def form_of(
    tokens: Sequence[int],
    is_mark: Callable[[int], bool],
    decode: Callable[[Sequence[int]], str],
    *,
    name: str,
    between: str | None,
) -> CallForm | None:
    """Return the form of a call; None where its arguments cannot be found.

    Args:
        tokens: of a call, rendered.
        is_mark: whether an id is no text.
        decode: ids to text.
        name: of the function that it calls.
        between: what separates two calls; None where there can only be one.
    """
    pieces: list[Piece] = []
    begin = 0
    for place, token in enumerate([*tokens, None]):
        if token is None or is_mark(token):
            pieces += [decode(tokens[begin:place])] if place > begin else []
            pieces += [] if token is None else [token]
            begin = place + 1
    place = next((i for i, each in enumerate(pieces) if isinstance(each, str) and json.dumps(name) in each), None)
    if place is None:
        return None
    text = str(pieces[place])
    start = text.rfind("{")
    end = text.find("}", start) + 1
    return CallForm(
        before=(*pieces[:place], text[:start]),
        after=(text[end:], *pieces[place + 1 :]),
        name=name,
        between=between,
    )


def calls_constraint(
    form: CallForm, functions: Mapping[str, Mapping[str, Any] | None], *, single: bool, otherwise: str | None = None
) -> Constraint:
    """Return a constraint that answers meet which are one call or, unless `single`, several.

    Args:
        form: of a call.
        functions: names, and the schemas of their arguments; None: there are none.
        single: there is one call.
        otherwise: a schema of JSON that answers may match instead, as text; None: they are calls.

    Raises:
        RequestError: arguments that are no object, or a grammar that is too long.
    """
    more = "" if single or form.between is None else f" ({_literal(form.between)} call)*"
    instead = "" if otherwise is None else " | content"
    lines = [f"start: call{more}{instead}", "call: " + " | ".join(f"call_{number}" for number in range(len(functions)))]
    for number, (name, parameters) in enumerate(functions.items()):
        schema = {"additionalProperties": False} if parameters is None else parameters
        if schema.get("type", "object") != "object":
            raise RequestError(f'parameters: those of {name!r} are no object; give a schema with "type": "object"')
        check_schema("parameters", schema)
        # Last, so that what the schema says of itself there has no effect.
        schema = {"type": "object", **schema, "x-guidance": JSON_OPTIONS}
        lines.append(
            f"call_{number}: {form.written(form.before, name)} arguments_{number} {form.written(form.after, name)}"
        )
        lines.append(f"arguments_{number}: %json {json.dumps(schema, allow_nan=False)}")
    if otherwise is not None:
        lines.append(f"content: %json {json.dumps({**json.loads(otherwise), 'x-guidance': JSON_OPTIONS})}")
    return Constraint(grammar="\n".join(lines))


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
