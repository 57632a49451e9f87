"""The command line as data: `python -m tests.cli_options` records it, tests/cli/test_stability.py compares.

Other people's scripts call these commands: an option that goes or changes its meaning is a decision, no side effect.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from difflm.cli.main import cli

RECORD = Path(__file__).parent / "data" / "cli_options.json"


def commands(group: click.Group = cli, words: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Yield every command that is no group, by its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


def described(parameter: click.Parameter) -> dict[str, Any]:
    """Return what a caller relies on: how the parameter is written, what it takes, what it is without it."""
    kind = parameter.type
    takes: Any = list(kind.choices) if isinstance(kind, click.Choice) else kind.name
    facts: dict[str, Any] = {"takes": "flag" if isinstance(parameter, click.Option) and parameter.is_flag else takes}
    default = parameter.to_info_dict()["default"]
    if isinstance(default, bool | int | float | str):
        facts["default"] = default
    if parameter.required:
        facts["required"] = True
    if parameter.nargs != 1 or parameter.multiple:
        facts["repeats"] = True
    return facts


def spelling(parameter: click.Parameter) -> str:
    """Return how a caller writes the parameter: --on/--off, or the name of an argument in capitals."""
    if isinstance(parameter, click.Option):
        return "/".join((*parameter.opts, *parameter.secondary_opts))
    return (parameter.name or "").upper()


def command_line() -> dict[str, dict[str, Any]]:
    """Return command -> parameter -> facts."""
    return {words: {spelling(each): described(each) for each in command.params} for words, command in commands()}


if __name__ == "__main__":
    RECORD.write_text(json.dumps(command_line(), indent=1) + "\n", encoding="utf-8")
    print(f"recorded {len(command_line())} commands in {RECORD}")
