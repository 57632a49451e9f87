"""What answers have to match, from the command line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from difflm.checkpoints.constraints import Constraint
from difflm.cli.constraining import constraint_of
from difflm.cli.main import run
from difflm.errors import RequestError
from tests.standins import word_tokenizer, write_parent

NOTHING = {"json_": False, "json_schema": None, "regex": None, "grammar": None}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("constraining")
    tokenizer = word_tokenizer(["in the beginning was a word"] * 4, special=(), vocabulary=290)
    write_parent(folder / "parent", tokenizer=tokenizer)
    assert run(["convert", str(folder / "parent"), str(folder / "model"), "--block-size", "4"]) == 0
    return folder / "model"


def test_options_are_constraints(tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"type": "integer"}')
    grammar.write_text('start: "a"')
    assert constraint_of(**NOTHING) is None  # type: ignore[arg-type]
    expected = {
        "json_": (True, Constraint(json_object=True)),
        "regex": ("a+", Constraint(regex="a+")),
        "grammar": (grammar, Constraint(grammar='start: "a"')),
    }
    for name, (value, constraint) in expected.items():
        assert constraint_of(**{**NOTHING, name: value}) == constraint  # type: ignore[arg-type]
    for given in (str(schema), ' {"type": "integer"}'):
        found = constraint_of(**{**NOTHING, "json_schema": given})  # type: ignore[arg-type]
        assert found is not None
        assert (found.field, found.text) == ("json_schema", '{"type":"integer"}')


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"regex": "a", "json_": True}, "--regex: --json is given as well; give one of --json, --json-schema, --regex"),
        ({"json_schema": "none.json"}, "--json-schema: 'none.json' cannot be read .*No such file"),
        ({"json_schema": '{"a": '}, "--json-schema: it is no JSON"),
        ({"grammar": Path("none.lark")}, "--grammar: 'none.lark' cannot be read"),
        ({"regex": "a" * 70_000}, "--regex: 70000 characters; give at most"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_used_names_the_option(given: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        constraint_of(**{**NOTHING, **given})  # type: ignore[arg-type]


@pytest.mark.parametrize("show", ["--no-show", "--show"])
def test_answers_match(show: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(model), "-p", "in the", "--temperature", "1.5", "--n", "1", "--no-stats", show]
    assert run([*words, "--regex", "[a-c]{2}-[0-9]{3}"]) == 0
    assert re.fullmatch(r"[a-c]{2}-[0-9]{3}", capsys.readouterr().out.strip())
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    assert run([*words, "--json-schema", json.dumps(schema)]) == 0
    assert json.loads(capsys.readouterr().out)["a"] in (1, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--regex", "["], "regex: it cannot be used .*unclosed"),
        (["--regex", "a", "--min-tokens", "2"], "min_tokens: 2 cannot be used beside a constraint"),
        (["--regex", "a", "--policy", "hf21"], "policy Hf21: it cannot be constrained"),
    ],
)
def test_refused(words: list[str], message: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", str(model), "-p", "in the", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.search(f"difflm: {message}", printed.err)


def test_an_answer_that_cannot_go_on_says_so(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", str(model), "-p", "in the", "--regex", "(a{1000}){1000}", "--no-stats"]) == 0
    assert "constraint: the answer could not go on" in capsys.readouterr().err


def test_without_the_library(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert run(["generate", str(model), "-p", "in the", "--json"]) == 2
    assert "pip install 'difflm[constrain]'" in capsys.readouterr().err
