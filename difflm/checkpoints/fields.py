"""Reading JSON files and their fields with one-line errors that name file, field, value and fix."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difflm.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`.

    Raises:
        CheckpointError: the file cannot be read, is not JSON or is not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({one_line(error)}); copy the file again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(value).__name__}; expected an object")
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`, or an empty one where there is no such file."""
    return read_json(path) if path.is_file() else {}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as indented JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def merged(base: Mapping[str, Any], updates: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `updates`; objects are merged recursively."""
    result = dict(base)
    for name, value in updates.items():
        old = result.get(name)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[name] = merged(old, value) if both else value  # pyright: ignore[reportArgumentType]
    return result


def one_line(error: BaseException) -> str:
    """Return an exception's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True, slots=True)
class Fields:
    """Typed access to the fields of a JSON object; null counts as absent.

    Attributes:
        raw: the object.
        where: its file, as shown in errors.
    """

    raw: Mapping[str, Any]
    where: str

    def error(self, name: str, wanted: str) -> CheckpointError:
        """Return the error for a field that is absent or not what it must be."""
        if self.raw.get(name) is None:
            return CheckpointError(f"{self.where}: {name} is missing; expected {wanted}")
        return CheckpointError(f"{self.where}: {name} is {self.raw[name]!r}; expected {wanted}")

    def integer(self, name: str, default: int | None = None, *, minimum: int = 1) -> int:
        """Return an integer of at least `minimum`; `default` where absent, an error where that is None."""
        value = self.raw.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.error(name, f"an integer of at least {minimum}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a positive number; `default` where absent, an error where that is None."""
        value = self.raw.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.error(name, "a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false; `default` where absent."""
        value = self.raw.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, "true or false")
        return value

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """Return one of `choices`; `default` where absent."""
        value = self.raw.get(name)
        if value is None:
            return default
        if value not in choices:
            raise self.error(name, "one of " + ", ".join(choices))
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """Return a field that holds one token id or a list of them; empty where absent or negative."""
        value = self.raw.get(name)
        values = value if isinstance(value, list) else [value] if value is not None else []
        if any(isinstance(each, bool) or not isinstance(each, int) for each in values):
            raise self.error(name, "a token id or a list of token ids")
        return tuple(each for each in values if each >= 0)
