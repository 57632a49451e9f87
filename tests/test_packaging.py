"""sdist and wheel as a stranger gets them: what they hold, and that an installation works on its declared needs alone.

The clean environment holds the wheel and links to the distributions that the wheel's own metadata asks for, nothing
else: an import of an extra, of a test helper or of the source tree fails there. No network is needed.
"""

from __future__ import annotations

import ast
import email.message
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from difflm import __version__
from difflm.serving.page import PLACES
from tests.standins import write_parent, write_texts

ROOT = Path(__file__).parents[1]
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "difflm").rglob("*.py"))
SMOKE = """
import importlib, pathlib, pkgutil, sys
import difflm
found = [each.name for each in pkgutil.walk_packages(difflm.__path__, "difflm.")]
for name in found:
    importlib.import_module(name)
extras = [name for name in ("gguf", "matplotlib", "pytest", "hypothesis", "tests") if importlib.util.find_spec(name)]
print(len(found), pathlib.Path(difflm.__file__).parents[1], extras)
"""


def run(*words: str | Path, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=clean | (env or {}), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", folder, cwd=ROOT)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel that the source distribution builds, as a package index would."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder, cwd=sdist)
    (archive,) = folder.glob("*.whl")
    return archive


def members(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def core_requirements(wheel: Path) -> list[Requirement]:
    found = [Requirement(each) for each in metadata(wheel).get_all("Requires-Dist", [])]
    return [each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})]


def closure(requirements: list[Requirement]) -> dict[str, importlib.metadata.Distribution]:
    """Return the installed distributions that the requirements bring in, by canonical name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    done: set[tuple[str, str]] = set()
    waiting = list(requirements)
    while waiting:
        each = waiting.pop()
        name = canonicalize_name(each.name)
        found[name] = importlib.metadata.distribution(each.name)
        for extra in {"", *each.extras}:
            if (name, extra) in done:
                continue
            done.add((name, extra))
            needs = [Requirement(text) for text in found[name].requires or []]
            waiting += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return found


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = [each for each in members(wheel) if ".dist-info/" not in each]
    assert sorted(each for each in names if each.endswith(".py")) == MODULES
    assert "difflm/py.typed" in names
    built_in = {path.relative_to(ROOT).as_posix() for path in (ROOT / "difflm" / "builtin" / "model").iterdir()}
    assert {each for each in names if each.startswith("difflm/builtin/model/")} == built_in
    others = [each for each in names if not each.endswith(".py") and each not in {"difflm/py.typed", *built_in}]
    assert {Path(each).suffix for each in others} <= {".yaml", ".html", ".css", ".js", ".svg"}
    assert {Path(each).name for each in others if each.startswith("difflm/serving/static/")} == set(PLACES.values())
    assert {each for each in others if each.startswith("difflm/recipes/")} == {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "difflm" / "recipes").glob("*.yaml")
    }
    assert not [each for each in names if not each.startswith("difflm/")]


def test_the_wheel_built_from_the_sdist_is_the_one_built_from_the_tree(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path, cwd=ROOT)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


def test_the_sdist_holds_what_the_tests_read(sdist: Path) -> None:
    for folder in ("difflm", "tests", "demo", "study", "docs", "examples", "benchmarks", "adapters"):
        here = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and (ROOT / "demo" / "cache") not in path.parents
        }
        packed = {path.relative_to(sdist).as_posix() for path in (sdist / folder).rglob("*") if path.is_file()}
        assert packed <= here
        assert {each for each in here - packed if not each.startswith(("demo/cache/", "demo/run/"))} == set()
    for name in ("README.md", "LICENSE", "CITATION.cff", "Makefile", "constraints.txt", "mkdocs.yml", "pyproject.toml"):
        assert (sdist / name).is_file(), name


def test_the_metadata_names_version_licence_and_extras(wheel: Path) -> None:
    facts = metadata(wheel)
    assert facts["Version"] == __version__
    assert facts["License-Expression"] == "Apache-2.0"
    assert facts["Requires-Python"] == ">=3.11"
    assert facts["Description-Content-Type"] == "text/markdown"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(facts.get_all("Provides-Extra", [])) == set(extras)
    with zipfile.ZipFile(wheel) as archive:
        entry = next(each for each in archive.namelist() if each.endswith("entry_points.txt"))
        assert "difflm = difflm.__main__:main" in archive.read(entry).decode()


def third_party_imports() -> Iterator[tuple[str, str]]:
    for name in MODULES:
        for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((name, each.name.split(".")[0]) for each in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield name, node.module.split(".")[0]


def test_every_library_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = {
        canonicalize_name(Requirement(each).name)
        for each in [*project["dependencies"], *(line for lines in extras.values() for line in lines)]
    }
    homes = {"yaml": "pyyaml", "opentelemetry": "opentelemetry-api", "pydantic_core": "pydantic"}
    # Run by an interpreter of the reader's own, which has it.
    foreign = {("difflm/bench/llama_worker.py", "llama_cpp")}
    absent = {
        (name, library)
        for name, library in third_party_imports()
        if library not in sys.stdlib_module_names
        and library not in ("difflm", "__future__", "compression")  # the last is of Python 3.14
        and canonicalize_name(homes.get(library, library)) not in declared
    }
    assert absent == foreign


def test_the_constraints_pin_everything_that_set_up_installs() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.+]+", line)] == []
    names = {canonicalize_name(line.partition("==")[0]) for line in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *extras["test"], *extras["docs"], *extras["dev"]]
    for each in map(Requirement, wanted):
        assert canonicalize_name(each.name) in names | {"torch", "difflm"}, each.name
    assert project["build-system"]["requires"] == [each for each in extras["test"] if each.startswith("hatchling")]


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bin folder of an environment with the wheel and the closure of its requirements."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    (site,) = folder.glob("lib/python*/site-packages")
    for distribution in closure(core_requirements(wheel)).values():
        tops = {each.parts[0] for each in distribution.files or [] if each.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
    python = folder / "bin" / "python"
    options = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=folder)
    return folder / "bin"


def test_every_module_imports_without_the_extras(clean: Path, tmp_path: Path) -> None:
    counted, place, extras = run(clean / "python", "-c", SMOKE, cwd=tmp_path).stdout.split(maxsplit=2)
    assert int(counted) == len(MODULES) - 1  # all but the package itself
    assert Path(place).is_relative_to(clean.parent)
    assert extras.strip() == "[]"


@pytest.mark.slow
def test_the_installed_command_line_works(clean: Path, tmp_path: Path) -> None:
    script = (
        "import click, difflm.cli.main as m, json\n"
        "def walk(group, words):\n"
        "    for name in group.list_commands(None):\n"
        "        command = group.get_command(None, name)\n"
        "        yield [*words, name]\n"
        "        if isinstance(command, click.Group):\n"
        "            yield from walk(command, [*words, name])\n"
        "print(json.dumps(list(walk(m.cli, []))))"
    )
    commands = json.loads(run(clean / "python", "-c", script, cwd=tmp_path).stdout)
    assert ["bench", "decode"] in commands
    difflm = clean / "difflm"
    assert run(difflm, "--version", cwd=tmp_path).stdout.strip().endswith(__version__)
    for words in [[], *commands]:
        assert run(difflm, *words, "--help", cwd=tmp_path).stdout.startswith(" ".join(["Usage: difflm", *words]))
    write_parent(tmp_path / "parent")
    write_texts(tmp_path / "text.jsonl")
    run(difflm, "convert", "parent", "converted", "--block-size", "8", cwd=tmp_path)
    trained = run(
        difflm, "train", "laptop-wsd", "--model", "converted", "--data", "text.jsonl", "--output", "run",
        "data.row_length=64", "curriculum=[{block_size: 8, tokens: 128}]", "embedding_noise.sigma=0",
        "embedding_noise.stages=1", "validation.rows=2", cwd=tmp_path,
    ).stdout.splitlines()[-1]  # fmt: skip
    done = run(difflm, "generate", trained, "--prompt", "In the", "--max-new-tokens", "8", cwd=tmp_path)
    assert done.stdout


@pytest.mark.slow
def test_the_installed_package_leaves_no_type_unknown(clean: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is in the extra [dev]")
    words = [sys.executable, "-m", "pyright", "--verifytypes", "difflm", "--ignoreexternal", "--outputjson"]
    path = f"{clean}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        words,
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "VIRTUAL_ENV": str(clean.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)["typeCompleteness"]
    assert Path(found["pyTypedPath"]).is_relative_to(clean.parent)
    counts = found["exportedSymbolCounts"]
    assert counts["withKnownType"] > 1000
    assert counts["withUnknownType"] == 0


@pytest.mark.slow
def test_the_tests_can_be_collected_from_the_sdist(sdist: Path) -> None:
    done = run(
        sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "tests", cwd=sdist
    ).stdout
    assert re.search(r"\d+(/\d+)? tests collected", done), done[-500:]
