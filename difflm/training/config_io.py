"""Training configurations from YAML, dotted overrides and Python, and back to YAML; errors in one line."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from difflm.errors import ConfigError
from difflm.training.config import TrainConfig

ROOT = "train"
Tree = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads `1e-4` as a number (YAML 1.1 does not) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of `node`; a repeated key is an error, not the last value."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a name", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Safe YAML that quotes what `_Loader` would read as a number."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


def parse_yaml(text: str, *, where: str) -> Any:
    """Return the value that YAML `text` stands for; `where` names it in an error."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        message = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise ConfigError(f"{where}: not valid YAML: {message}") from None
    except RecursionError:
        raise ConfigError(f"{where}: not valid YAML: nested too deeply") from None


def read_tree(path: Path) -> Tree:
    """Return the mapping in the YAML file `path`, not yet validated."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file; expected YAML in UTF-8") from None
    tree = parse_yaml(text, where=str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of fields, found {type(tree).__name__}")
    return tree


def override(tree: Tree, assignments: Iterable[str]) -> Tree:
    """Return a copy of `tree` with `dotted.path=value` assignments applied in order.

    Args:
        tree: fields, as YAML gives them.
        assignments: e.g. `optimizer.learning_rate=1e-4`, `curriculum.0.tokens=5000`,
            `curriculum=[{block_size: 4, tokens: 5000}]`; values are YAML.

    Raises:
        ConfigError: an assignment without `=`, or a path through something that has no fields.
    """
    tree = copy.deepcopy(tree)
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator or not name.strip():
            raise ConfigError(f"{assignment!r}: an override reads field=value, e.g. optimizer.learning_rate=1e-4")
        _assign(tree, name.strip(), parse_yaml(text, where=f"{ROOT}.{name.strip()}"))
    return tree


def _assign(tree: Tree, name: str, value: Any) -> None:
    *parents, last = name.split(".")
    here: Any = tree
    path = ROOT
    for part in parents:
        here = _child(here, part, path)
        path += f".{part}"
    if isinstance(here, list):
        here[_index(here, last, path)] = value
    elif isinstance(here, dict):
        here[last] = value
    else:
        raise ConfigError(f"{path}.{last}: cannot be set, {path} is {here!r} and has no fields")


def _child(here: Any, part: str, path: str) -> Any:
    if isinstance(here, list):
        return here[_index(here, part, path)]
    if isinstance(here, dict):
        off = here.get(part) is None and path == ROOT and type(None) in get_args(_hints(TrainConfig).get(part))
        if off:  # a section that may be null, such as lora
            here[part] = {}
        return here.setdefault(part, {})
    raise ConfigError(f"{path}.{part}: cannot be set, {path} is {here!r} and has no fields")


def _index(items: list[Any], part: str, path: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise ConfigError(f"{path}.{part}: {part!r} is no entry of this list of {len(items)}; count from 0")
    return int(part)


def config_from_tree(tree: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration that the fields of `tree` stand for; unknown and missing fields are errors."""
    try:
        text = json.dumps(tree)
    except (TypeError, ValueError):
        path, value = _odd_value(tree)
        raise ConfigError(
            f"{path}: {_shown(value)} is not allowed; only numbers, strings, booleans, lists and mappings are"
        ) from None
    try:
        # Validated as JSON: strict typing stays, yet a list may become a tuple and a string a path.
        return _adapter().validate_json(text)
    except ValidationError as error:
        raise _config_error(error) from None


def _odd_value(tree: Mapping[str, Any]) -> tuple[str, Any]:
    """Return (dotted path, value) of the first value that JSON does not have: a date, a set, a list inside itself."""
    waiting: list[tuple[str, Any, tuple[int, ...]]] = [(ROOT, tree, ())]
    while waiting:
        path, value, above = waiting.pop(0)
        if id(value) in above or not isinstance(value, dict | list | str | int | float | None):
            return path, value
        inside = (*above, id(value))
        if isinstance(value, dict):
            waiting += [(f"{path}.{name}", each, inside) for name, each in value.items()]
        if isinstance(value, list):
            waiting += [(f"{path}[{index}]", each, inside) for index, each in enumerate(value)]
    return ROOT, tree


def load_config(path: Path, assignments: Iterable[str] = ()) -> TrainConfig:
    """Return the configuration in the YAML file `path` with dotted overrides applied."""
    return config_from_tree(override(read_tree(path), assignments))


def config_to_tree(config: TrainConfig) -> Tree:
    """Return every field of `config` as plain numbers, strings, lists and mappings."""
    return _adapter().dump_python(config, mode="json")


def dump_config(config: TrainConfig) -> str:
    """Return `config` as YAML, every field included; loading the text gives an equal configuration."""
    return yaml.dump(config_to_tree(config), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100)


ConfigLike = TrainConfig | Mapping[str, Any] | str | Path
"""A training configuration in any of its forms: the tree, the same as a mapping, the path of a YAML file."""


def as_config(config: ConfigLike) -> TrainConfig:
    """Return the validated tree of a configuration in any form.

    Raises:
        ConfigError: an unknown field, a value that cannot be used, or a file that cannot be read.
    """
    if isinstance(config, TrainConfig):
        return checked(config)
    return config_from_tree(config) if isinstance(config, Mapping) else load_config(Path(config))


def checked(config: TrainConfig) -> TrainConfig:
    """Return `config` if every field satisfies its rule; configurations built in Python pass here, too."""
    return config_from_tree(json.loads(json.dumps(dataclasses.asdict(config), default=str)))


@functools.cache
def _adapter() -> TypeAdapter[TrainConfig]:
    return TypeAdapter(TrainConfig)


def _config_error(error: ValidationError) -> ConfigError:
    """Return the first problem in one line (dotted path, value, rule), and how many more there are."""
    grouped: dict[str, list[Any]] = {}
    known_last = sorted(error.errors(include_url=False), key=lambda each: each["type"] != "unexpected_keyword_argument")
    for problem in known_last:
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):
            return cause
        path, _ = _place(problem["loc"])
        grouped.setdefault(path, []).append(problem)
    if len(grouped) > 1:
        # A list whose entries are faulty is reported as too short as well.
        grouped = {path: each for path, each in grouped.items() if each[0]["type"] != "too_short"} or grouped
    path, problems = next(iter(grouped.items()))
    others = [each for each in grouped if each != path]
    more = f" (wrong as well: {', '.join(others)})" if others else ""
    return ConfigError(f"{path}: {_describe(problems)}{more}")


def _place(location: Sequence[str | int]) -> tuple[str, list[type[Any]]]:
    """Return the dotted path of a problem, and the dataclass in which its last part is a field.

    pydantic's location also holds the names of union members; those that are no fields are left out.
    """
    path, here, owner = ROOT, [TrainConfig], [TrainConfig]
    for part in location:
        tagged = [each for each in here if len(here) > 1 and _hints(each)["kind"] == Literal[part]]
        if isinstance(part, int):
            path += f"[{part}]"
        elif tagged:
            here = tagged
        elif here:
            path, owner = f"{path}.{part}", here
            here = _dataclasses_in(_hints(here[0]).get(part))
    return path, owner


@functools.cache
def _hints(owner: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(owner, include_extras=False)
    return {each.name: hints[each.name] for each in dataclasses.fields(owner)}


def _dataclasses_in(hint: Any) -> list[type[Any]]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    return [found for each in get_args(hint) for found in _dataclasses_in(each)]


def _describe(problems: Sequence[Any]) -> str:
    """Return value, rule and fix of the problems of one field."""
    first = problems[0]
    name = str(first["loc"][-1]) if first["loc"] else ""
    _, owners = _place(first["loc"])
    names = list(_hints(owners[0]))
    match first["type"]:
        case "unexpected_keyword_argument":
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"unknown field{hint} (fields: {', '.join(names)})"
        case "missing":
            return _missing(first["loc"])
        case "union_tag_not_found":
            return f"{_shown(first['input'])}: 'kind' is missing; set it to one of {', '.join(_kinds())}"
        case "union_tag_invalid":
            tag = first["ctx"]["tag"]
            near = difflib.get_close_matches(tag, _kinds(), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"unknown kind {tag!r}{hint} (kinds: {', '.join(_kinds())})"
    rules = " or ".join(dict.fromkeys(_rule(each) for each in problems))
    return f"{_shown(first['input'])} is not allowed; must be {rules}"


def _missing(location: Sequence[str | int]) -> str:
    path, _ = _place(location)
    if isinstance(location[-1], int):
        return "missing; the list needs one more entry"
    return f"missing; it has no default, set it in the file or by {path.removeprefix(ROOT + '.')}=..."


def _kinds() -> list[str]:
    return [get_args(_hints(each)["kind"])[0] for each in _dataclasses_in(_hints(TrainConfig)["objective"])]


def _rule(problem: Any) -> str:
    rules: dict[str, str] = {
        "dataclass_type": "a mapping of fields",
        "tuple_type": "a list",
        "int_type": "a whole number",
    }
    text: str = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    text = text.replace("Tuple should have ", "a list of ").replace(" after validation", "")
    return rules.get(problem["type"], text)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
