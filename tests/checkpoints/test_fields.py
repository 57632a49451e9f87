"""Typed fields of JSON files: values pass, everything else names file, field, value and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from difflm.checkpoints.fields import Fields, read_json, read_optional_json, write_json
from difflm.errors import CheckpointError

FIELDS = Fields({"n": 3, "x": 0.5, "b": True, "s": "two", "none": None, "ids": [4, -1, 5], "id": 7}, "config.json")


def test_values_pass() -> None:
    assert FIELDS.integer("n") == 3
    assert FIELDS.number("x") == 0.5
    assert FIELDS.flag("b", False)
    assert FIELDS.choice("s", ("one", "two"), "one") == "two"
    assert FIELDS.token_ids("ids") == (4, 5)
    assert FIELDS.token_ids("id") == (7,)


def test_null_counts_as_absent() -> None:
    assert FIELDS.integer("none", 9) == 9
    assert FIELDS.number("none", 9.0) == 9.0
    assert not FIELDS.flag("none", False)
    assert FIELDS.choice("none", ("one",), "one") == "one"
    assert FIELDS.token_ids("none") == ()


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: FIELDS.integer("b"), ("config.json", "b is True", "integer")),
        (lambda: FIELDS.integer("x"), ("x is 0.5", "integer")),
        (lambda: FIELDS.integer("n", minimum=4), ("n is 3", "at least 4")),
        (lambda: FIELDS.integer("gone"), ("gone is missing", "integer")),
        (lambda: FIELDS.number("s"), ("s is 'two'", "number")),
        (lambda: FIELDS.number("b"), ("b is True", "number")),
        (lambda: FIELDS.flag("n", True), ("n is 3", "true or false")),
        (lambda: FIELDS.choice("s", ("one",), "one"), ("s is 'two'", "one")),
        (lambda: FIELDS.token_ids("x"), ("x is 0.5", "token id")),
    ],
)
def test_wrong_values_are_named(call: object, parts: tuple[str, ...]) -> None:
    assert callable(call)
    with pytest.raises(CheckpointError) as caught:
        call()
    assert all(part in str(caught.value) for part in parts)
    assert "\n" not in str(caught.value)


def test_json_round_trip_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": ["\u00e9", 1]})
    assert read_json(path) == {"a": ["\u00e9", 1]}
    assert read_optional_json(tmp_path / "absent.json") == {}
    for damage in (b'{"a": 1', b"\xff\xfe\x00", b"[1]", b"", b"[" * 100_000):
        path.write_bytes(damage)
        with pytest.raises(CheckpointError, match=r"a\.json") as caught:
            read_json(path)
        assert "\n" not in str(caught.value)
