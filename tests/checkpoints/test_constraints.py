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
        ({"json_schema": {"const": "a" * MOST_CHARACTERS}}, "json_schema: .* characters; give at most"),
    ],
)
def test_what_cannot_be_used_names_the_field(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Constraint(**given)


def test_equal_ones_have_equal_texts_and_the_order_of_properties_counts() -> None:
    schema = {"properties": {"b": {}, "a": {}}}
    assert Constraint(json_schema=schema).text == Constraint(json_schema='{"properties": {"b": {}, "a": {}}}').text
    other = {"properties": {"a": {}, "b": {}}}
    assert Constraint(json_schema=schema).text != Constraint(json_schema=other).text
    assert Constraint(json_object=True).field == "json_object"
    assert (Constraint(regex="").field, Constraint(regex="").text) == ("regex", "")
