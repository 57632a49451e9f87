"""Training recipes that ship with the package, by name.

A recipe is a configuration of `difflm train` without `model`, `output` and `data.paths`, which each run names.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def recipe_path(name: str) -> Path | None:
    """Return the file of a shipped recipe, or None if there is no recipe of that name."""
    return _FOLDER / f"{name}.yaml" if name in recipe_names() else None
