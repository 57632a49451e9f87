"""Options that say what an answer has to match."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from difflm.cli.options import folder
from difflm.errors import RequestError

if TYPE_CHECKING:
    from difflm.checkpoints.constraints import Constraint

Decorated = Callable[..., Any]


def constraint_options(command: Decorated) -> Decorated:
    """Add --json, --json-schema, --regex and --grammar; `sampling_options` below it takes them as `constraint`."""

    @functools.wraps(command)
    def with_constraint(
        *arguments: Any, json_: bool, json_schema: str | None, regex: str | None, grammar: Path | None, **values: Any
    ) -> Any:
        constraint = constraint_of(json_=json_, json_schema=json_schema, regex=regex, grammar=grammar)
        return command(*arguments, constraint=constraint, **values)

    decorated: Decorated = with_constraint
    for option in reversed(
        [
            click.option(
                "--json/--no-json",
                "json_",
                default=False,
                show_default=True,
                help="Whether answers have to be JSON objects, any. This and the next three need the extra constrain.",
            ),
            click.option(
                "--json-schema",
                metavar="FILE|TEXT",
                show_default="none",
                help="JSON schema of the answers: a file, or the schema itself where it begins with a brace.",
            ),
            click.option(
                "--regex",
                metavar="EXPRESSION",
                show_default="none",
                help="What answers match as a whole, e.g. '[0-9]{4}-[0-9]{2}'; in the syntax of Rust's regex crate.",
            ),
            click.option(
                "--grammar",
                type=folder(),
                metavar="FILE",
                show_default="none",
                help="Grammar of the answers in llguidance's dialect of Lark; it begins at the rule start.",
            ),
        ]
    ):
        decorated = option(decorated)
    return decorated


def constraint_of(
    *, json_: bool, json_schema: str | None, regex: str | None, grammar: Path | None
) -> Constraint | None:
    """Return the constraint that options give; None for none.

    Args:
        json_: any object.
        json_schema: a file, or a schema.
        regex: an expression.
        grammar: a file.

    Raises:
        RequestError: several, a file that cannot be read, or no constraint in it.
    """
    from difflm.checkpoints.constraints import Constraint

    named = {"--json": json_ or None, "--json-schema": json_schema, "--regex": regex, "--grammar": grammar}
    given = [name for name, value in named.items() if value is not None]
    if not given:
        return None
    if len(given) > 1:
        raise RequestError(f"{given[1]}: {given[0]} is given as well; give one of {', '.join(named)}")
    try:
        if json_schema is not None:
            own = json_schema.lstrip().startswith("{")
            return Constraint(json_schema=json_schema if own else _text(Path(json_schema), "--json-schema"))
        if grammar is not None:
            return Constraint(grammar=_text(grammar, "--grammar"))
        return Constraint(json_object=True) if json_ else Constraint(regex=regex)
    except RequestError as error:
        field, _, rest = str(error).partition(": ")
        raise RequestError(f"{given[0]}: {rest}" if not field.startswith("-") else str(error)) from None


def _text(path: Path, option: str) -> str:
    """Return the text of a file."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise RequestError(f"{option}: {str(path)!r:.200} cannot be read ({reason}); give a file") from None
