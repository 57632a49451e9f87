"""Commands and options change on purpose only: the record in tests/data/cli_options.json says what they are."""

from __future__ import annotations

import json

import click

from tests.cli_options import RECORD, command_line, commands, described


def test_the_command_line_is_the_recorded_one() -> None:
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))
    assert command_line() == recorded, "if the change is meant: make cli-options, and say so in the changelog"


def test_the_record_says_what_a_caller_relies_on() -> None:
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))
    assert {"convert", "train", "generate", "bench decode"} <= set(recorded)
    assert recorded["train"]["--resume"] == {"takes": ["auto", "never"], "default": "auto"}
    assert recorded["train"]["RECIPE"]["required"]
    assert recorded["train"]["--data"]["repeats"]


def test_a_changed_default_or_choice_is_seen() -> None:
    one = click.Option(["--x"], type=click.Choice(["a", "b"]), default="a")
    other = click.Option(["--x"], type=click.Choice(["a", "b"]), default="b")
    third = click.Option(["--x"], type=click.Choice(["a"]), default="a")
    assert len({json.dumps(described(each)) for each in (one, other, third)}) == 3
    assert len(list(commands())) == len(command_line())
