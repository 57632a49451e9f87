"""The documentation is true where a machine can tell: its code runs, its names exist, its API page is complete."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml

import difflm
from difflm.checkpoints.convert import convert
from difflm.data.records import Records
from difflm.diffusion.noise import RowNoise
from difflm.diffusion.objectives import Objective
from difflm.plots import read_rows
from difflm.recipes import recipe_names, recipe_path
from difflm.training.config_io import read_tree
from difflm.training.preview import preview
from difflm.types import Batch, ModelInput, TokenScores
from tests.cli_options import commands
from tests.standins import write_parent, write_texts

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
FENCES = {page.name: re.findall(r"^```(bash|python) test\n(.*?)^```$", page.read_text(), re.M | re.S) for page in PAGES}
EVERYTHING = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))]


def execute(language: str, code: str, folder: Path) -> str:
    """Run a fence in a folder, whose bin/ comes first on the path, and return what it prints."""
    start = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else [sys.executable, "-c"]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",  # a run takes every core, and threads that spin on a shared one take forever
        "GOMP_SPINCOUNT": "0",
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run([*start, code], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def command_in(folder: Path) -> None:
    """Put `difflm` of this source tree on the path of `execute`."""
    command = folder / "bin" / "difflm"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m difflm "$@"\n')
    command.chmod(0o755)


def test_every_page_with_code_that_claims_to_run_is_run_here() -> None:
    assert {name for name, fences in FENCES.items() if fences} == {"evaluation.md", "extending.md", "quickstart.md"}


def test_extending(tmp_path: Path) -> None:
    convert(write_parent(tmp_path / "parent"), tmp_path / "converted", block_size=8)
    write_texts(tmp_path / "text.jsonl")
    for language, code in FENCES["extending.md"]:
        printed = execute(language, code, tmp_path)
        assert (tmp_path / printed.strip() / "model.safetensors").is_file()


def write_pairs(path: Path) -> None:
    """Write prompts with completions, as JSONL."""
    names = ["ada", "bob", "cleo", "dan", "eve", "finn", "gus", "hana"]
    rows = [
        {"prompt": f"{name} has {number} of them: ", "completion": f"{number} of {name}"}
        for number in range(8)
        for name in names
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("write", [write_texts, pytest.param(write_pairs, marks=pytest.mark.slow)])
def test_quickstart(write: Callable[[Path], object], tmp_path: Path) -> None:
    write_parent(tmp_path / "parent")
    write(tmp_path / "data.jsonl")
    command_in(tmp_path)
    printed = [execute(language, code, tmp_path) for language, code in FENCES["quickstart.md"]]
    assert all(printed)
    commands = [code.split()[1] for language, code in FENCES["quickstart.md"] if language == "bash"]
    assert commands == ["prepare", "prepare", "convert", "train", "merge", "generate"]
    assert ("ada" if write is write_pairs else "beginning") in re.sub(r"[^a-z]", "", printed[0])
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        each.name for each in (tmp_path / "merged").iterdir()
    }


@pytest.mark.parametrize("language", ["python", pytest.param("bash", marks=pytest.mark.slow)])
def test_evaluation(language: str, tmp_path: Path) -> None:
    if language == "bash" and importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm-eval is in the extra [eval]; CI has it")
    convert(write_parent(tmp_path / "parent"), tmp_path / "converted", block_size=8)
    command_in(tmp_path)
    [code] = [code for each, code in FENCES["evaluation.md"] if each == language]
    lines = execute(language, code, tmp_path).splitlines()
    if language == "python":
        assert [line.split(" nats, ")[1] for line in lines] == ["63 forwards", "63 forwards"]
        return
    assert [line.split()[:2] for line in lines[1:]] == [
        ["capitals", "acc"],
        ["reasoning-gym:chain_sum:min_terms=2,max_terms=2", "score"],
    ]
    results = json.loads((tmp_path / "results.json").read_text())
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    costs = {name for task in results["tasks"].values() for name in task["cost"]}
    fields = {*results, *(name for task in results["tasks"].values() for name in task), *costs} - {"truncated_contexts"}
    assert {name for name in fields if not re.search(rf"[`.]{name}\b", page)} == set()


def test_the_objective_of_the_page_is_that_of_the_example_and_about_thirty_lines() -> None:
    page = FENCES["extending.md"][0][1]
    example = (ROOT / "examples" / "custom_objective.py").read_text(encoding="utf-8")

    def essence(text: str) -> str:
        body = text[text.index("class Focal") :].partition("\n\n\n")[0]
        return re.sub(r'\n *""".*?"""', "", body).replace("\n\n", "\n")

    assert essence(page) == essence(example)
    assert sum(bool(line.strip()) for line in page.splitlines()) <= 35


@pytest.mark.parametrize("page", EVERYTHING, ids=lambda path: path.name)
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.isascii()
    for name in set(re.findall(r"`((?:difflm|tests|examples|docs|demo|benchmarks|\.github)/[\w/.-]+)`", text)):
        if "YYYY" not in name:
            assert (ROOT / name).exists(), name
    for name in set(re.findall(r"`((?:[a-z]+/)*[a-z_]+\.py)`", text)):
        assert any((ROOT / base / name).exists() for base in ("", "difflm", "tests")), name
    for place, name in set(re.findall(r"`(?:difflm/)?([\w/]+\.py)`:? ((?:`\w+`(?:, )?)+)", text)):
        for each in re.findall(r"`(\w+)`", name):
            source = (ROOT / "difflm" / place).read_text(encoding="utf-8")
            assert re.search(rf"\b{each}\b", source), f"{place} has no {each}"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = "\n".join(page.read_text(encoding="utf-8") for page in EVERYTHING)
    named = {each.split()[0] for each in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.M)}
    assert {"check", "docs", "test-full"} <= named
    for target in sorted(named):
        assert re.search(rf"^(?:[\w-]+ )*{target}(?: [\w-]+)*:", makefile, re.M), target


def test_every_target_is_in_the_makefile_s_header() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    header = "".join(line for line in makefile.splitlines(keepends=True) if line.startswith("#"))
    listed = re.search(r"^\.PHONY: (.*)$", makefile, re.M)
    assert listed is not None
    for target in listed.group(1).split():
        assert re.search(rf"\bmake {target}\b", header), target


def test_the_api_page_has_every_public_name() -> None:
    text = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("api.md", "configuration.md"))
    shown = set(re.findall(r"^::: (\S+)$", text, re.M))
    homes = vars(difflm)["_HOMES"]
    for name in set(difflm.__all__) - {"__version__"}:
        home = homes[name].replace(":", ".")
        assert home in shown or home.rpartition(".")[0] in shown, name


def test_the_configuration_page_has_every_section_of_the_tree() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    parts = ("data", "lora", "objective", "optimizer", "router", "run")
    modules = ("config", *(f"config_{part}" for part in parts))
    sections = {
        f"{each.__module__}.{each.__name__}"
        for name in modules
        for each in vars(importlib.import_module(f"difflm.training.{name}")).values()
        if isinstance(each, type) and dataclasses.is_dataclass(each)
    }
    assert set(re.findall(r"^::: (\S+)$", text, re.M)) == sections
    fields = {each.name for each in dataclasses.fields(difflm.TrainConfig)}
    assert {name for name in re.findall(r"^## (\w+)$", text, re.M)} <= fields


def test_the_table_of_recipes_is_what_the_recipes_say() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    table = text.partition("| recipe |")[2].partition("\n\n")[0]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    rows = {cells[0].strip("`"): cells for cells in lines}
    assert set(rows) == set(recipe_names())
    for name, cells in rows.items():
        path = recipe_path(name)
        assert path is not None
        tree = read_tree(path)
        sizes = [str(stage.get("block_size", "-")) for stage in tree["curriculum"]]
        total = sum(stage["tokens"] for stage in tree["curriculum"])
        assert cells[2:] == [f"{total:,}", str(tree["data"]["row_length"]), " > ".join(sizes)], name


@dataclasses.dataclass(frozen=True)
class Broken:
    """An objective whose loss is no number, to see what a skipped step leaves."""

    base: Objective

    def prepare(self, batch: Batch, *, mask_id: int | None, noise: RowNoise) -> ModelInput:
        return self.base.prepare(batch, mask_id=mask_id, noise=noise)

    def loss(self, scores: tuple[TokenScores, ...], inputs: ModelInput) -> tuple[torch.Tensor, ...]:
        return tuple(each * float("nan") for each in self.base.loss(scores, inputs))


def test_every_field_of_metrics_jsonl_is_documented(tmp_path: Path) -> None:
    convert(write_parent(tmp_path / "parent"), tmp_path / "converted", block_size=4)
    write_texts(tmp_path / "text.jsonl")
    steps: list[Objective] = []

    def third_is_broken(base: Objective) -> Objective:
        steps.append(base)
        return Broken(base) if len(steps) == 3 else base

    difflm.train(
        {
            "model": str(tmp_path / "converted"),
            "output": str(tmp_path / "run"),
            "data": {"paths": [str(tmp_path / "text.jsonl")], "row_length": 64, "validation_fraction": 0.2},
            "curriculum": [{"block_size": 4, "tokens": 500}],
            "validation": {"rows": 2, "block_sizes": [4]},
            "samples": {"every_tokens": 400, "prompts": ["In the"], "max_new_tokens": 4},
            "nonfinite": {"action": "skip"},
            "threads": 1,
        },
        objective=third_is_broken,
    )
    found: dict[str, set[str]] = {}
    for row in read_rows(tmp_path / "run" / "metrics.jsonl"):
        found.setdefault(row["kind"], set()).update(set(row) - {"kind", "step", "num_tokens"})
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    sections = re.findall(r"^### kind: (\w+)\n(.*?)(?=^#|\Z)", page, re.M | re.S)
    documented = {kind: set(re.findall(r"^\| `(\w+)` \|", text, re.M)) for kind, text in sections}
    assert found == documented
    top = {path.name for path in (tmp_path / "run").iterdir()}
    listed = set(re.findall(r"^\| `([\w.]+)(?:/[\w.-]+/)?` \|", page.partition("## Checkpoints")[0], re.M))
    assert top <= listed


def test_the_page_of_commands_has_every_command() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `difflm ([a-z ]+)` \|", text, re.M))
    assert {words for words, _ in commands()} <= listed
    groups = {words.split()[0] for words in listed}
    assert listed - {words for words, _ in commands()} <= groups


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert set(re.findall(r": ([\w-]+\.md)$", text, re.M)) == {page.name for page in PAGES}


def test_the_documentation_builds_strictly(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is in the extra [docs]; `make docs` builds in CI")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    html = (tmp_path / "site" / "extending" / "index.html").read_text(encoding="utf-8")
    assert 'class="language-python"' in html
    assert "python test" not in html
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(r'<(?:script|img)[^>]+src="(https?:[^"]+)"', page.read_text(encoding="utf-8"))
        assert loaded == [], "a page loads from elsewhere"


def test_the_hosted_workflow_is_pinned_and_asks_for_nothing() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    used = re.findall(r"uses: (\S+)(.*)", text)
    assert used
    for action, comment in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in text
    jobs = workflow["jobs"]
    assert {"check", "test", "wheel", "audit"} == set(jobs)
    assert all("timeout-minutes" in job for job in jobs.values())
    assert not any("permissions" in job for job in jobs.values())


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == difflm.__version__
    assert citation["license"] == "Apache-2.0"
    assert citation["cff-version"] == "1.2.0"
    assert {"title", "message", "authors"} <= set(citation)


TEMPLATE = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}{% endfor %}{% if m.role == 'assistant' %}<|endoftext|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
DATA = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
RECORDS = re.findall(r"^```json test\n(.*?)^```\n\nLearnt: (.*?)\n", DATA, re.M | re.S)


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    parent = write_parent(folder / "parent")
    facts = json.loads((parent / "tokenizer_config.json").read_text()) | {"chat_template": TEMPLATE}
    (parent / "tokenizer_config.json").write_text(json.dumps(facts))
    convert(parent, folder / "model", block_size=4)
    return folder / "model"


def test_every_form_of_a_record_has_its_example() -> None:
    assert DATA.count("```json test") == len(RECORDS)
    headings = re.findall(r"^### .* \((\w+)\)$", DATA, re.M)
    assert sorted(headings) == sorted(set(get_args(Records)) - {"auto"})
    assert all(record.count("\n") <= 5 for record, _ in RECORDS)


@pytest.mark.parametrize(("record", "learnt"), RECORDS)
def test_records_of_the_page_teach_what_it_says(record: str, learnt: str, chatting: Path, tmp_path: Path) -> None:
    """Each is detected as what its heading says, and shown with exactly these tokens as learnt."""
    heading, forced = re.findall(r"^### (.*) \((\w+)\)$", DATA[: DATA.index(record)], re.M)[-1]
    file = tmp_path / "records.json"
    file.write_text(f"[{record}]")
    lines: list[str] = []
    rows = preview([file], model=chatting, rows=1, row_length=512, mask_rate=0.0, report=lines.append)
    assert f": json of {heading.split()[0]}" in lines[0] or heading == "text"
    told = preview([file], model=chatting, rows=1, row_length=512, mask_rate=0.0, records=forced)  # type: ignore[arg-type]
    assert told == rows
    expected = re.findall(r"`([^`]+)`", learnt)
    tokens = [token for token in rows[0].tokens if token.role == "trainable"]
    found = ["".join(token.text for token in run) for _, run in groupby(tokens, key=lambda token: token.document)]
    if forced == "input_ids":
        assert expected == [str(label) for label in json.loads(record)["labels"] if label != -100]
        assert len(tokens) == len(expected)
    else:
        assert found == expected
        assert sum(token.role == "eos" for token in rows[0].tokens) == len(expected)
