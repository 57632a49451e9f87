"""The README's commands and code run as they stand there, on a tiny stand-in for the checkpoint and the texts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.standins import write_parent, write_texts

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
FENCES = re.findall(r"^```(bash|python) test\n(.*?)^```$", TEXT, re.M | re.S)

# A stand-in learns nothing worth waiting for.
SHORTER = (
    "data.row_length=64 checkpoint.every_tokens=192 validation.every_tokens=0 validation.rows=2 "
    "curriculum.0.tokens=1024"
)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the README's commands start from, and `difflm` on its PATH."""
    folder = tmp_path_factory.mktemp("readme")
    write_parent(folder / "SmolLM2-135M-Instruct")
    write_texts(folder / "text.jsonl")
    command = folder / "bin" / "difflm"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m difflm "$@"\n')
    command.chmod(0o755)
    return folder


def test_the_fences_run_in_order(workshop: Path) -> None:
    assert [language for language, _ in FENCES] == ["bash", "python"]
    for language, code in FENCES:
        shortened = re.sub(r"^(difflm train .*)$", rf"\1 {SHORTER}", code, flags=re.M)
        assert language == "python" or shortened != code
        start = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else [sys.executable, "-c"]
        path = f"{workshop / 'bin'}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [*start, shortened],
            cwd=workshop,
            env=environment() | {"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{code}\n{done.stderr}"
        assert done.stdout


def test_the_commands_cover_the_whole_path() -> None:
    lines = [line for _, code in FENCES for line in code.splitlines() if line.startswith("difflm ")]
    assert [line.split()[1] for line in lines] == ["convert", "train", "merge", "generate"]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z-]+)", TEXT))))
def test_the_make_targets_exist(target: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if target.startswith("demo"):
        assert "-m demo.run" in done.stdout


def test_every_file_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"`((?:difflm|tests|demo|benchmarks)/[\w/.-]+)`", TEXT))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_tree_names_every_part_of_the_package() -> None:
    tree = TEXT.partition("<!-- tree -->")[2].partition("```text\n")[2].partition("```")[0]
    parts = {path.name for path in (ROOT / "difflm").iterdir() if path.is_dir() or path.suffix == ".py"}
    for part in sorted(parts - {"__pycache__", "__init__.py", "__main__.py"}):
        assert re.search(rf"\b{re.escape(part)}", tree), part


def test_the_tree_names_every_module() -> None:
    block = TEXT.split("<!-- tree -->")[1].split("```")[1]
    for package in ("difflm", "demo", "study"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "__init__.py":
                assert re.search(rf"\b{re.escape(path.name)}\b", block), path
    assert set(re.findall(r"\b\w+\.py\b", block)) <= {path.name for path in ROOT.rglob("*.py")}
