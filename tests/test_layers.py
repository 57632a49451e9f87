"""Import directions, confinement of other libraries and a few bans, read from the source (no import-linter needed)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "difflm"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [
    {"builtin", "types", "errors"},
    {"diffusion", "models"},
    {"checkpoints", "data", "likelihood", "reading", "scoring", "plots", "plots_decoding"},
    {"training", "decode"},
    {"bench", "chat", "display", "doctor", "estimate", "evaluation", "inspection", "reporting", "runs", "serving"},
    {"recipes", "cli"},
    {"__main__"},
]
NEVER_MEET = [("training", "decode"), ("diffusion", "models"), ("data", "models"), ("data", "checkpoints")]
CONFINED = {
    "transformers": "difflm/checkpoints/",
    "tokenizers": "difflm/checkpoints/",
    "llguidance": "difflm/checkpoints/grammars.py",
    "gguf": "difflm/checkpoints/",
    "rich": "difflm/display/",
    "matplotlib": "difflm/plots",
    "click": "difflm/cli/",
    "yaml": "difflm/training/config_io.py",
    "pydantic": ("difflm/training/config", "difflm/serving/"),
    "fastapi": "difflm/serving/",
    "starlette": "difflm/serving/",
    "uvicorn": "difflm/serving/",
    "prometheus_client": "difflm/serving/",
    "httpx2": "difflm/chat/remote.py",
    "opentelemetry": "difflm/serving/telemetry.py",
    "pyarrow": "difflm/data/",
    "zstandard": "difflm/data/",
    "tensorboard": "difflm/training/tracking.py",
    "wandb": "difflm/training/tracking.py",
    "trackio": "difflm/training/tracking.py",
    "reasoning_gym": "difflm/evaluation/tasks.py",
}
NOT_AT_IMPORT = {
    "transformers", "gguf", "matplotlib", "pyarrow", "zstandard", "rich", "tensorboard", "wandb", "trackio",
    "reasoning_gym", "llguidance", "httpx2", "fastapi", "starlette", "uvicorn", "prometheus_client",
    "opentelemetry",
}  # fmt: skip
PURE = {"torch", "math", "collections", "dataclasses", "typing", "__future__", "difflm"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "relative imports hide the layer"  # noqa: PT018
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
NAMES = {module_name(path): path for path in FILES}
GRAPH = {
    name: {found for found in imports_of(TREES[path]) if found in NAMES and found not in (name, "difflm")}
    for name, path in NAMES.items()
}


def part(name: str) -> str | None:
    return name.split(".")[1] if "." in name else None


def level(name: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if part(name) in layer)


def test_there_is_something_to_check() -> None:
    assert len(NAMES) > 20
    assert any(found.startswith("difflm.diffusion") for found in GRAPH["difflm.training.trainer"])


@pytest.mark.parametrize("name", sorted(name for name in GRAPH if part(name)))
def test_imports_go_downwards(name: str) -> None:
    for found in GRAPH[name]:
        assert level(found) <= level(name), f"{name} imports {found}, which is in a higher layer"
        for left, right in NEVER_MEET:
            assert (part(name), part(found)) != (left, right), f"{name} imports {found}"
            if (left, right) != ("data", "models") and left != "data":
                assert (part(name), part(found)) != (right, left), f"{name} imports {found}"


def test_no_import_cycles_lazy_ones_included() -> None:
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " > ".join([*above[above.index(name) :], name])
        if name not in done:
            for found in sorted(GRAPH[name]):
                visit(found, (*above, name))
            done.add(name)

    for name in sorted(set(GRAPH) - {"difflm", "difflm.cli.main"}):
        visit(name, ())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_other_libraries_stay_where_they_belong(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    for name in imports_of(TREES[path]):
        library = name.split(".")[0]
        if library in CONFINED:
            assert place.startswith(CONFINED[library]), f"{place} imports {name}; {library} is for {CONFINED[library]}"
        if place.startswith("difflm/diffusion/"):
            assert library in PURE, f"{place} imports {name}"
            assert library != "difflm" or part(name) in ("diffusion", "types", "errors"), f"{place} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_are_imported_when_used(path: Path) -> None:
    for node in TREES[path].body:
        for name in imports_of(node) if isinstance(node, ast.Import | ast.ImportFrom) else ():
            assert name.split(".")[0] not in NOT_AT_IMPORT - ({"rich"} if path.parent.name == "display" else set())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_bans(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.isascii(), "ASCII only"
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"getattr", "hasattr", "setattr", "eval", "exec"}, f"line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            assert called not in {"torch.load", "torch.save", "torch.manual_seed", "yaml.unsafe_load"}, called
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except, line {node.lineno}"
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert isinstance(node.value, ast.Constant) and node.value.value is False, path  # noqa: PT018
    assert not {"pickle", "cloudpickle", "dill", "shelve", "marshal"} & {
        name.split(".")[0] for name in imports_of(TREES[path])
    }
