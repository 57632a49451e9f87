"""From what a user writes to a configuration: a recipe by name, file or function, and fields set on top."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

from difflm.errors import ConfigError, DifflmError
from difflm.recipes.shipped import recipe_names, recipe_path
from difflm.training.config import TrainConfig
from difflm.training.config_io import Tree, checked, config_from_tree, config_to_tree, override, read_tree

PathLike = str | Path
_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_DASHED = re.compile(r"--[A-Za-z_][\w.-]*")
_SCALED = ("checkpoint.every_tokens", "validation.every_tokens", "samples.every_tokens", "lr_schedule.warmup_tokens")


def resolve(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    model: PathLike | None = None,
    output: PathLike | None = None,
    data: Sequence[PathLike] = (),
    tokens: int | None = None,
) -> TrainConfig:
    """Return the configuration of a recipe with fields set on top.

    Args:
        recipe: name of a shipped recipe, a YAML file, or "module:function".
        overrides: "dotted.path=value", or the same with leading dashes (see `assignments`).
        model: short for this field; None leaves the recipe's.
        output: short for this field; None leaves the recipe's.
        data: short for data.paths; () leaves the recipe's.
        tokens: length of the run; every token count of the recipe is scaled to it before the overrides.

    Raises:
        ConfigError: no such recipe, or a field that cannot be used.
    """
    fields: dict[str, Any] = {"model": model and str(model), "output": output and str(output)}
    fields["data"] = [str(path) for path in data] or None
    tree = _tree(recipe, {name: value for name, value in fields.items() if value})
    if tokens is not None:
        tree = scaled(tree, tokens)
    tree = override(tree, assignments(overrides))
    for name in ("model", "output"):
        if fields[name]:
            tree[name] = fields[name]
    if fields["data"]:
        tree = override(tree, [f"data.paths={json.dumps(fields['data'])}"])
    return config_from_tree(tree)


def find_recipe(name: str) -> Path:
    """Return the file of a recipe given by name or by path.

    Raises:
        ConfigError: neither a shipped recipe nor a file.
    """
    path = recipe_path(name) or Path(name)
    if path.is_file():
        return path
    near = difflib.get_close_matches(name, recipe_names(), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"recipe: {name!r} is neither a file nor a shipped recipe{hint} ({', '.join(recipe_names())})")


def assignments(words: Sequence[str]) -> list[str]:
    """Return "field=value" for each of `a.b=c`, `--a.b=c` and `--a.b c`; dashes inside a dashed name are underscores.

    Raises:
        ConfigError: a dashed name without a value.
    """
    made: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        name, separator, value = word.partition("=")
        if not _DASHED.fullmatch(name):
            made.append(word)
            continue
        if not separator:
            if not waiting or _DASHED.match(waiting[0]):
                raise ConfigError(f"{word}: no such option, and no value for a field; write {word}=value")
            value = waiting.pop(0)
        made.append(f"{name.removeprefix('--').replace('-', '_')}={value}")
    return made


def scaled(tree: Tree, tokens: int) -> Tree:
    """Return a copy of a recipe's fields for a run of `tokens` tokens: budgets and intervals in proportion.

    Raises:
        ConfigError: fewer tokens than stages, or a curriculum that is none.
    """
    stages = tree.get("curriculum")
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise ConfigError("train.curriculum: a list of stages with tokens is needed to scale a recipe to other tokens")
    counts = [stage.get("tokens") for stage in stages]
    if not all(isinstance(count, int) and count > 0 for count in counts):
        raise ConfigError(f"train.curriculum: tokens are {counts}; all must be whole numbers above 0 to be scaled")
    total = sum(counts)
    if tokens < len(counts):
        raise ConfigError(f"tokens: {tokens} is too few for the {len(counts)} stages of the recipe; give more")
    ends = [round(sum(counts[: index + 1]) * tokens / total) for index in range(len(counts))]
    sizes = [max(end - start, 1) for start, end in zip([0, *ends], ends, strict=False)]
    sizes[sizes.index(max(sizes))] += tokens - sum(sizes)
    changes = [f"curriculum.{index}.tokens={size}" for index, size in enumerate(sizes)]
    for name in (*_SCALED, "objective.annealing_tokens"):
        section, _, field = name.partition(".")
        value = tree[section].get(field) if isinstance(tree.get(section), dict) else None
        if isinstance(value, int) and value > 0:
            changes.append(f"{name}={max(round(value * tokens / total), 1)}")
    return override(tree, changes)


def _tree(recipe: str, given: Mapping[str, Any]) -> Tree:
    """Return the fields of a recipe, its name included."""
    if recipe_path(recipe) is None and not Path(recipe).is_file() and _REFERENCE.fullmatch(recipe):
        return {"recipe": recipe, **_from_function(recipe, given)}
    found = find_recipe(recipe)
    return {"recipe": found.stem, **read_tree(found)}


def _from_function(reference: str, given: Mapping[str, Any]) -> Tree:
    """Return the fields that "module:function" returns; it is called with what it asks for of model, output, data."""
    module_name, _, name = reference.partition(":")
    with _working_folder():
        module = _import(module_name, reference)
        if name not in vars(module):
            near = difflib.get_close_matches(name, [each for each in vars(module) if not each.startswith("_")], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"recipe: {reference}: {module_name} has no {name!r}{hint}")
        made = vars(module)[name]
        if callable(made):
            made = _call(made, reference, given)
    if isinstance(made, TrainConfig):
        tree = config_to_tree(checked(made))
        return {key: value for key, value in tree.items() if key != "recipe" or value is not None}
    if isinstance(made, Mapping):
        return _plain(made)
    raise ConfigError(
        f"recipe: {reference} returned {type(made).__name__}; return a TrainConfig or a mapping of fields"
    )


def _import(module_name: str, reference: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"recipe: {reference} cannot be imported: {_told(error)}") from None
        raise ConfigError(
            f"recipe: {reference}: no module {error.name!r}; install it, or run from the folder that holds it"
        ) from None
    except DifflmError:
        raise
    except Exception as error:
        raise ConfigError(f"recipe: {reference} cannot be imported: {_told(error)}") from None


def _call(function: Callable[..., Any], reference: str, given: Mapping[str, Any]) -> Any:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise ConfigError(
            f"recipe: {reference} is no function that can be called without knowing its arguments"
        ) from None
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {each.name: each for each in parameters if each.kind not in variadic}
    for name, parameter in named.items():
        if parameter.default is inspect.Parameter.empty and name not in given:
            advice = f"give --{name}" if name in ("model", "output", "data") else "give it a default"
            raise ConfigError(f"recipe: {reference} needs {name}; {advice}")
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise ConfigError(f"recipe: {reference} takes {name} by position only; take it by name")
    try:
        return function(**{name: value for name, value in given.items() if name in named})
    except DifflmError:
        raise
    except Exception as error:
        raise ConfigError(f"recipe: {reference} failed: {_told(error)}") from None


def _told(error: Exception) -> str:
    """Return an error of the user's code in one line, with the place where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


@contextmanager
def _working_folder() -> Iterator[None]:
    """Let modules of the working folder be imported, as `python -m` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _plain(value: Any) -> Any:
    """Return a tree with paths as strings and tuples as lists; what YAML does not know is left for the check."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, PurePath) else value
