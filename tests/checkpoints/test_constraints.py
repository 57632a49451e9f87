"""What a constraint takes, and how it says what it does not."""

from __future__ import annotations

from typing import Any

import pytest

from difflm.checkpoints.constraints import MOST_CHARACTERS, Constraint
from difflm.errors import RequestError

NESTED: dict[str, Any] = {}
for _ in range(20_000):
    NESTED = {"a": NESTED}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "constraint: nothing given; give one of json_object, json_schema, regex, grammar"),
        ({"regex": "a", "json_object": True}, "constraint: json_object and regex given; give one of"),
        ({"json_object": 1.5}, "json_object: 1.5 is not a boolean"),
        ({"regex": 5}, "regex: 5 is no text; give a string"),
        ({"grammar": b"start: A"}, "grammar: .* is no text; give a string"),
        ({"json_schema": "{"}, "json_schema: it is no JSON .*give an object of JSON"),
        ({"json_schema": "[1]"}, "json_schema: .* is no object; give a JSON schema"),
        ({"json_schema": {"const": float("nan")}}, "json_schema: it is no JSON"),
        ({"json_schema": {"const": object()}}, "json_schema: it is no JSON"),
        ({"json_schema": NESTED}, "json_schema: it is no JSON"),
        ({"regex": "a" * (MOST_CHARACTERS + 1)}, f"regex: 65537 characters; give at most {MOST_CHARACTERS}"),
        ({"json_schema": {"minProperties": 2}}, "json_schema: minProperties 2 cannot be enforced"),
        ({"json_schema": {"required": ["a"], "minProperties": 3}}, "json_schema: minProperties 3 cannot be enforced"),
        (
            {"json_schema": {"properties": {"default": {"exclusiveMinimum": 0, "maximum": 0.5}}}},
            "json_schema: exclusiveMinimum 0 cannot be enforced beside maximum 0.5",
        ),
        (
            {"json_schema": {"anyOf": [{}, {"minimum": -1.25, "exclusiveMaximum": -1}]}},
            "json_schema: exclusiveMaximum -1 cannot be enforced beside minimum -1.25",
        ),
        ({"json_schema": {"const": "a" * MOST_CHARACTERS}}, "json_schema: .* characters; give at most"),
    ],
)
def test_what_cannot_be_used_names_the_field(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Constraint(**given)


@pytest.mark.parametrize(
    "schema",
    [
        {"minProperties": 1},
        {"required": ["a", "b"], "minProperties": 3},
        {"properties": {"minProperties": {"type": "integer"}}},
        {"const": {"minProperties": 5}},
        {"exclusiveMinimum": 0, "maximum": 1},
        {"exclusiveMinimum": 0, "maximum": 10**400},
        {"exclusiveMaximum": 2, "minimum": 1.5},
        {"type": "integer", "exclusiveMinimum": 3, "maximum": 3.5},
        {"exclusiveMinimum": 1, "exclusiveMaximum": True},
    ],
    ids=str,
)
def test_what_can_be_enforced_is_taken(schema: dict[str, Any]) -> None:
    assert Constraint(json_schema=schema).text


def test_equal_ones_have_equal_texts_and_the_order_of_properties_counts() -> None:
    schema = {"properties": {"b": {}, "a": {}}}
    assert Constraint(json_schema=schema).text == Constraint(json_schema='{"properties": {"b": {}, "a": {}}}').text
    other = {"properties": {"a": {}, "b": {}}}
    assert Constraint(json_schema=schema).text != Constraint(json_schema=other).text
    assert Constraint(json_object=True).field == "json_object"
    assert (Constraint(regex="").field, Constraint(regex="").text) == ("regex", "")
