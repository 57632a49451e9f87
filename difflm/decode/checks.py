"""Ranges of parameters, each refused in one line that names field, value and fix."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TypeGuard, cast

from difflm.errors import RequestError


def check_integer(field: str, value: object, *, minimum: int, unit: str) -> None:
    """Refuse what is no integer of at least `minimum`.

    Args:
        field: name, for the error.
        value: as given.
        minimum: smallest that is taken.
        unit: of the value, for the error.

    Raises:
        RequestError: naming field and value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise RequestError(f"{field}: {value!r} cannot be used; give an integer >= {minimum} ({unit})")


def finite(number: float) -> bool:
    """Return whether a number is finite as a float: an integer may be too large for one."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def check_number(field: str, value: object, *, low: float = 0.0, high: float = math.inf, above: bool = False) -> None:
    """Refuse what is no finite number in [low, high].

    Args:
        field: name, for the error.
        value: as given.
        low: smallest that is taken.
        high: largest that is taken.
        above: whether `low` itself is not taken.

    Raises:
        RequestError: naming field and value.
    """
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if finite(number) and low <= number <= high and not (above and number == low):
        return
    at_least = "" if low == -math.inf else f" {'>' if above else '>='} {low:g}"
    at_most = "" if high == math.inf else f" and <= {high:g}" if at_least else f" <= {high:g}"
    raise RequestError(f"{field}: {value!r} cannot be used; give a finite number{at_least}{at_most}")


def _is_collection(value: object) -> TypeGuard[Iterable[object]]:
    return isinstance(value, Iterable) and not isinstance(value, str)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_ids(field: str, value: object) -> None:
    """Refuse what is no collection of token ids.

    Args:
        field: name, for the error.
        value: as given.

    Raises:
        RequestError: naming field and value.
    """
    if not _is_collection(value) or not all(_is_id(each) for each in value):
        raise RequestError(f"{field}: {value!r} cannot be used; give token ids, integers >= 0")


def check_strings(field: str, value: object) -> None:
    """Refuse what is no collection of non-empty strings.

    Args:
        field: name, for the error.
        value: as given.

    Raises:
        RequestError: naming field and value.
    """
    if not _is_collection(value) or not all(isinstance(each, str) and each for each in value):
        raise RequestError(f"{field}: {value!r} cannot be used; give strings, none of them empty")


def check_bias(field: str, value: object) -> None:
    """Refuse what does not map token ids to finite numbers.

    Args:
        field: name, for the error.
        value: as given.

    Raises:
        RequestError: naming field and value.
    """
    if not isinstance(value, Mapping):
        raise RequestError(f"{field}: {value!r} cannot be used; give a mapping of token ids to numbers")
    biases = cast("Mapping[object, object]", value)
    check_ids(field, biases)
    for token, bias in biases.items():
        check_number(f"{field}: id {token}", bias, low=-math.inf)
