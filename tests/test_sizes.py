"""Files and functions stay small, and the tests follow the package file by file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "difflm").rglob("*.py"))
FILE_LINES, FUNCTION_LINES = 400, 60


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_names_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or not tree.body, f"{path} says nothing about itself"
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    scopes: list[ast.Module | ast.ClassDef] = [tree, *classes]
    for scope in scopes:
        for node in scope.body:
            # Static methods are the two halves of an autograd function; its class says what they compute.
            if isinstance(node, ast.FunctionDef) and node.decorator_list:
                continue
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}: {node.name}"


def test_every_module_has_its_test_file() -> None:
    absent = []
    for path in FILES:
        # A bare list of fields has nothing to test: its users do.
        if path.name in ("__init__.py", "__main__.py") or path == ROOT / "difflm" / "models" / "config.py":
            continue
        place = path.relative_to(ROOT / "difflm")
        if not (ROOT / "tests" / place.with_name(f"test_{place.name}")).is_file():
            absent.append(str(place))
    assert not absent
