"""The harness finds our models by name, and gets the answers that `difflm eval` gets.

The tests that run the harness are slow ones, as in tests/evaluation/test_harness.py.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import logging
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import difflm
from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.errors import CheckpointError, ConfigError, DifflmError, RequestError
from difflm.evaluation import lm_eval
from difflm.evaluation.answers import AnswerSettings
from difflm.evaluation.harness import Evaluation, evaluate
from difflm.evaluation.lm_eval import Asked, load_from, main, settings_from
from tests.evaluation.test_harness import QUESTIONS, SETTINGS, with_harness

ROOT = Path(__file__).parents[2]
ARGUMENTS = {"threshold": 0.01, "max_new_tokens": 6, "ignore_eos": True, "samples": 15}  # SETTINGS, as --model_args
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {questions}}}}}
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
"""
CHOOSE = """
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITE = """
output_type: generate_until
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 5}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def loaded(files: dict[str, Path]) -> LoadedModel:
    return load_model(files["paper"])


@pytest.fixture(scope="module")
def tasks(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a task of choices and one of answers, of which the model knows some."""
    folder = tmp_path_factory.mktemp("tasks")
    context = "Question: {}\nAnswer:".format
    params = difflm.SamplingParams(max_new_tokens=5, threshold=0.01, ignore_eos=True, stop=("\n",))
    written = difflm.generate(loaded, [context(each["question"]) for each in QUESTIONS[:2]], params)
    rows = [{**each, "choices": [*each["choices"]]} for each in QUESTIONS]
    for row, each in zip(rows, written, strict=False):
        row["choices"][1] = each.text
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, rest in (("choose", CHOOSE), ("write", WRITE)):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, questions=questions) + rest)
    return folder


def values(found: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of the harness's results."""
    return {"choose": found["choose"]["acc,none"], "write": found["write"]["exact_match,none"]}


@pytest.fixture(scope="module")
def expected(loaded: LoadedModel, tasks: Path) -> dict[str, float]:
    """Return what `difflm eval` finds."""
    found = evaluate(loaded, Evaluation(tasks=["choose", "write"], settings=SETTINGS, include=[tasks]))["tasks"]
    return {name: each["value"] for name in found for each in found[name]["metrics"].values()}


@pytest.mark.slow
@with_harness
def test_the_harness_s_functions_take_the_model_and_its_name(
    loaded: LoadedModel, tasks: Path, expected: dict[str, float], files: dict[str, Path]
) -> None:
    harness = importlib.import_module("lm_eval")
    manager = importlib.import_module("lm_eval.tasks").TaskManager
    model = lm_eval.DifflmLM(loaded, SETTINGS)
    named = {"pretrained": str(files["paper"]), **ARGUMENTS}
    line = ",".join(f"{name}={value}" for name, value in named.items())
    assert 0 < expected["write"] < 1
    for which, arguments in ((model, None), ("difflm", named), ("difflm", line)):
        found = harness.simple_evaluate(
            which,
            model_args=arguments,
            tasks=["choose", "write"],
            task_manager=manager(include_path=str(tasks), include_defaults=False),
            bootstrap_iters=0,
        )
        assert values(found["results"]) == expected
    assert model.answers.usage["write"].as_dict()["generation"]["requests"] == 4


@pytest.mark.slow
@with_harness
def test_the_harness_s_command_knows_the_name(
    tasks: Path, expected: dict[str, float], files: dict[str, Path], tmp_path: Path
) -> None:
    def command(*words: str) -> subprocess.CompletedProcess[str]:
        closed = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
        return subprocess.run(
            [sys.executable, "-m", "difflm.evaluation.lm_eval", "run", "--model", "difflm", *words],
            env=os.environ | closed | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    what = ["--tasks", "choose,write", "--include_path", str(tasks)]
    given = [f"pretrained={files['paper']}", *(f"{name}={value}" for name, value in ARGUMENTS.items())]
    done = command("--model_args", ",".join(given), *what, "--output_path", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    [results] = (tmp_path / "results").rglob("*.json")
    assert values(json.loads(results.read_text())["results"]) == expected
    done = command("--model_args", "pretrained=absent", *what)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("difflm: absent: ")


@with_harness
def test_the_entry_point_is_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = importlib.import_module("lm_eval.api.registry")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [(name, value)] = project["entry-points"]["lm_eval.models"].items()
    monkeypatch.setattr(registry.model_registry, "_objs", {})
    # As the harness's own discovery does it: the name stands there before the class is made.
    point = importlib.metadata.EntryPoint(name, value, "lm_eval.models")
    registry.model_registry.register(name, target=point)
    lm_eval.lm_class.cache_clear()
    found = registry.get_model("difflm")
    assert found is lm_eval.DifflmLM
    assert issubclass(found, importlib.import_module("lm_eval.api.model").LM)
    lm_eval.register()
    assert registry.get_model("difflm") is found


@with_harness
def test_our_name_does_not_hide_the_harness_s_own() -> None:
    code = (
        "from difflm.evaluation.lm_eval import register\n"
        "register()\n"
        "from lm_eval.api.registry import model_registry\n"
        "assert {'difflm', 'hf', 'vllm'} <= set(model_registry)\n"
    )
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


def test_the_page_names_every_argument() -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8").partition("## From lm-evaluation-harness")[2]
    for name in ("pretrained", *lm_eval.LOADING, *lm_eval.ANSWERING):
        assert f"`{name}`" in page, name


def test_arguments_are_those_of_the_library() -> None:
    given = {"pretrained": "m", "dtype": "bfloat16", "seed": 3, "policy": "hf21:threshold=0.7", "likelihood": "chain"}
    assert settings_from({**given, "max_requests": 4}) == AnswerSettings(
        params=difflm.SamplingParams(seed=3, policy=difflm.policy("hf21", threshold=0.7)),
        likelihood="chain",
        max_requests=4,
    )
    assert settings_from({"block_size": None}) == AnswerSettings()


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({}, ConfigError, "model_args: pretrained is missing; give pretrained=FOLDER of a model"),
        ({"pretrained": "m", "treshold": 1}, ConfigError, "'treshold' is not known; did you mean 'threshold'?"),
        ({"pretrained": "m", "zzz": 1}, ConfigError, "'zzz' is not known; use pretrained, device, dtype, "),
        ({"pretrained": 404}, CheckpointError, "404: "),
    ],
)
def test_arguments_that_are_none(given: dict[str, Any], error: type[DifflmError], said: str) -> None:
    with pytest.raises(error, match=said.replace("?", r"\?")) as found:
        load_from(given)
    assert "\n" not in str(found.value)
    with pytest.raises(RequestError, match="threshold: 'high' cannot be used"):
        settings_from({"threshold": "high"})


def test_the_model_is_loaded_as_it_is_asked_for(
    files: dict[str, Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"pretrained": files["paper"], "dtype": "bfloat16", "samples": 3}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING, logger="lm_eval.difflm"):
        plain = Asked.create_from_arg_obj(named, {"batch_size": 1, "device": "cpu"})
        assert caplog.text == ""
        model = Asked.create_from_arg_obj(named, {"batch_size": 1, "device": "cuda:0"})
    assert "there is no CUDA device here; the model runs on the CPU" in caplog.text
    for each in (plain, model):
        weight = each.answers.loaded.model.embedding.weight
        assert (weight.dtype, weight.device.type, each.answers.settings.samples) == (torch.bfloat16, "cpu", 3)
    assert model.tokenizer_name == str(files["paper"])
    assert "<|assistant|>" in model.chat_template()
    assert model.apply_chat_template([{"role": "user", "content": "hi"}]) == "<|user|>hi<|assistant|>"
    with pytest.raises(ConfigError, match="device: 'cuda:9' cannot be used here"):
        Asked.create_from_arg_obj({**named, "device": "cuda:9"})


def test_without_the_extra_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real: Callable[[str], Any] = importlib.import_module

    def without(name: str) -> Any:
        if name.startswith("lm_eval"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="lm_eval")
        return real(name)

    monkeypatch.setattr("difflm.evaluation.lm_eval.importlib.import_module", without)
    lm_eval.lm_class.cache_clear()
    with pytest.raises(ConfigError, match=r"eval: lm_eval is not installed; pip install 'difflm\[eval\]'"):
        _ = lm_eval.DifflmLM
    assert main() == 2
    assert capsys.readouterr().err == "difflm: eval: lm_eval is not installed; pip install 'difflm[eval]'\n"
    with pytest.raises(AttributeError, match="no attribute 'Difflm'"):
        _ = lm_eval.Difflm
