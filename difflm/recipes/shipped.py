"""The YAML files beside this module: names, in any spelling, and what they say about themselves."""

from __future__ import annotations

import re
from pathlib import Path

_FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def recipe_path(name: str) -> Path | None:
    """Return the file of a shipped recipe, or None if there is no recipe of that name.

    Args:
        name: in any case, its words joined by "-", "_", "." or nothing: llada2-mini is llada2_mini.
    """
    found = [each for each in recipe_names() if _letters(each) == _letters(name)]
    return _FOLDER / f"{found[0]}.yaml" if found else None


def recipe_summary(name: str) -> str:
    """Return what a shipped recipe is, in one line: the first line of its file."""
    path = recipe_path(name)
    assert path is not None, name
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def _letters(name: str) -> str:
    return re.sub(r"[-_.]", "", name).casefold()
