"""Ranges: what is taken, and the one line that refuses the rest."""

from __future__ import annotations

import math
from typing import Any

import pytest

from difflm.decode.checks import check_bias, check_ids, check_integer, check_number, check_strings
from difflm.errors import RequestError


@pytest.mark.parametrize(
    ("value", "options", "said"),
    [
        (-0.5, {}, "x: -0.5 cannot be used; give a finite number >= 0"),
        (math.inf, {}, ">= 0"),
        (10**400, {}, ">= 0"),  # no float holds it
        (True, {}, ">= 0"),
        ("1", {}, ">= 0"),
        (0, {"above": True, "high": 1.0}, "> 0 and <= 1"),
        (1.5, {"high": 1.0}, ">= 0 and <= 1"),
        (math.nan, {"low": -math.inf}, "give a finite number"),
    ],
)
def test_numbers(value: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as refused:
        check_number("x", value, **options)
    assert said in str(refused.value)


def test_what_is_in_range_is_taken() -> None:
    check_number("x", 0)
    check_number("x", -3.0, low=-math.inf)
    check_number("x", 1, high=1.0, above=True)
    check_integer("x", 2, minimum=2, unit="tokens")
    check_ids("x", (0, 5))
    check_strings("x", ["a"])
    check_bias("x", {3: -1.5})


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (check_ids, [1, -1]),
        (check_ids, ["a"]),
        (check_ids, "12"),
        (check_ids, 12),
        (check_ids, [True]),
        (check_strings, ["a", ""]),
        (check_strings, "stop"),
        (check_strings, [3]),
        (check_strings, None),
        (check_bias, [3]),
        (check_bias, 3),
        (check_bias, {-1: 0.5}),
        (check_bias, {3: math.inf}),
    ],
)
def test_collections(check: Any, value: Any) -> None:
    with pytest.raises(RequestError, match=r"x.*cannot be used"):
        check("x", value)


def test_an_integer_is_no_boolean() -> None:
    with pytest.raises(RequestError, match=r"x: True cannot be used; give an integer >= 0 \(rows\)"):
        check_integer("x", True, minimum=0, unit="rows")
