"""The harness gets our answers and nothing from a network; what it cannot use is one line.

The tests that run the harness are slow ones: it and what it needs are 450 MB, so it is in the extra [eval] (and [dev],
with which CI runs them), not in [test].
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import difflm
from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.decode.request import SamplingParams
from difflm.errors import ConfigError
from difflm.evaluation.answers import Answers, AnswerSettings, noise_key
from difflm.evaluation.harness import Evaluation, evaluate, metrics
from difflm.likelihood import Continuation, likelihoods
from tests.drafters import drafters as drafters

ROOT = Path(__file__).parents[2]
with_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is in the extra [eval]; CI has it"
)
SETTINGS = AnswerSettings(params=SamplingParams(max_new_tokens=6, threshold=0.01, ignore_eos=True), samples=15)
QUESTIONS = [
    {"question": f"what is {number} and one?", "choices": [str(number), f" {number + 1}", "none of these"], "answer": 1}
    for number in range(4)
]
TASKS = {
    "choose": """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "write": """
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 5}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
    "text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: question
metric_list:
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
""",
    "echo": """
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: " yes"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
""",
    "elsewhere": "output_type: generate_until\ndoc_to_text: question\ndoc_to_target: answer\n",
    "broken": "output_type: generate_until\ndoc_to_text: '{{ question'\ndoc_to_target: ''\n",
    "unsafe": "output_type: generate_until\nunsafe_code: true\ndoc_to_text: question\ndoc_to_target: question\n",
}


@pytest.fixture(scope="module")
def loaded(files: dict[str, Path]) -> LoadedModel:
    return load_model(files["paper"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with task files and their questions."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "questions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS))
    local = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'questions.jsonl'}}}}}\n"
    for name, text in TASKS.items():
        data = "dataset_path: somebody/somewhere\n" if name == "elsewhere" else local
        (folder / f"{name}.yaml").write_text(f"task: {name}\ntest_split: test\n{data}{text}")
    return folder


def asked(folder: Path, *tasks: str, **changes: Any) -> Evaluation:
    return replace(Evaluation(tasks=tasks, settings=SETTINGS, include=[folder]), **changes)


def context(question: dict[str, Any]) -> str:
    return f"Question: {question['question']}\nAnswer:"


@pytest.mark.slow
@with_harness
def test_results_are_those_of_direct_computation(loaded: LoadedModel, folder: Path) -> None:
    found = evaluate(loaded, asked(folder, "choose", "write", "text", "echo"))["tasks"]
    answers = Answers(loaded, SETTINGS)

    def value(task: str, number: int, text: str, continuation: str, window: Sequence[int] = ()) -> float:
        prompt, tokens = answers.encode_pair(text, continuation)
        given = Continuation(prompt=prompt, tokens=tokens, key=noise_key(task, number, *window))
        return likelihoods(loaded, [given], samples=15)[0].log_likelihood

    right, written, bits, echoed = 0, 0, 0.0, 0.0
    for number, each in enumerate(QUESTIONS):
        # The harness puts a space before a choice.
        scores = [value("choose", number, context(each), f" {choice}") for choice in each["choices"]]
        right += scores.index(max(scores)) == 1
        params = replace(SETTINGS.params, max_new_tokens=5, stop=("\n",))
        [completion] = difflm.generate(loaded, [context(each)], params)
        written += completion.text == each["choices"][1]
        bits -= value("text", number, "", each["question"], [0]) / math.log(2)
        echoed += value("echo", number, each["question"], " yes")
    assert found["choose"]["metrics"]["acc"]["value"] == right / 4
    assert found["write"]["metrics"]["exact_match"]["value"] == written / 4
    num_bytes = sum(len(each["question"]) for each in QUESTIONS)
    assert found["text"]["metrics"]["bits_per_byte"]["value"] == pytest.approx(bits / num_bytes, rel=1e-5)
    assert found["echo"]["metrics"]["perplexity"]["value"] == pytest.approx(math.exp(-echoed / 4), rel=1e-4)
    assert found["choose"]["questions"] == 4
    assert found["choose"]["cost"]["likelihood"]["texts"] == 12
    assert found["write"]["cost"]["generation"]["tokens_per_forward"] > 0
    error = found["choose"]["metrics"]["acc"]["standard_error"]
    share = right / 4
    assert error == pytest.approx(math.sqrt(share * (1 - share) / 3))


@pytest.mark.slow
@with_harness
def test_results_say_what_led_to_them_and_repeat(loaded: LoadedModel, folder: Path) -> None:
    settings = replace(SETTINGS, params=replace(SETTINGS.params, seed=5), max_requests=2, batch_tokens=100)
    one = evaluate(loaded, asked(folder, "choose", "write", settings=settings, limit=2, num_fewshot=1))
    other = evaluate(loaded, asked(folder, "write", "choose", settings=settings, limit=2, num_fewshot=1))
    json.dumps(one, default=str)
    assert one["settings"]["seed"] == 5
    assert one["settings"]["likelihood"] == "elbo"
    assert one["settings"]["block_size"] == 8
    assert {"difflm", "torch", "lm-eval", "commit"} <= set(one["versions"])
    for name in ("choose", "write"):
        assert one["tasks"][name]["num_fewshot"] == 1
        assert one["tasks"][name]["questions"] == 2
        assert one["tasks"][name]["metrics"] == other["tasks"][name]["metrics"]


@pytest.mark.slow
@with_harness
def test_results_of_a_drafter_are_its_parent_s_and_name_the_kind(drafters: Path, folder: Path) -> None:
    settings = replace(SETTINGS, likelihood="next_token")
    drafted = evaluate(load_model(drafters / "drafter"), asked(folder, "choose", "text"))
    parent = evaluate(load_model(drafters / "parent"), asked(folder, "choose", "text", settings=settings))
    assert drafted["settings"]["likelihood"] == "next_token"
    for task, metric in (("choose", "acc"), ("text", "bits_per_byte")):
        values = [each["tasks"][task]["metrics"][metric]["value"] for each in (drafted, parent)]
        assert values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.slow
@with_harness
def test_generated_questions_and_local_files_are_scored_by_their_tasks(
    loaded: LoadedModel, folder: Path, tmp_path: Path
) -> None:
    local = tmp_path / "local.jsonl"
    answers = Answers(loaded, SETTINGS)
    [written] = difflm.generate(loaded, ["what"], SETTINGS.params)
    rows = [{"prompt": "what", "answer": written.text}, {"prompt": "what", "answer": "something else"}]
    local.write_text("".join(json.dumps(row) + "\n" for row in rows))
    generated = "reasoning-gym:chain_sum:min_terms=2,max_terms=2"
    found = evaluate(loaded, asked(folder, str(local), generated, limit=3))["tasks"]
    assert found[str(local)]["metrics"]["score"]["value"] == 0.5
    assert found[str(local)]["questions"] == 2
    name = next(name for name in found if name.startswith("reasoning-gym"))
    assert found[name]["questions"] == 3
    assert found[name]["cost"]["generation"]["requests"] == 3
    assert answers.usage == {}


@pytest.mark.slow
@with_harness
def test_questions_are_put_into_the_chat_template(
    loaded: LoadedModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def watched(self: Answers, requests: Sequence[Any]) -> list[str]:
        seen.extend(request.args[0] for request in requests)
        return ["" for _ in requests]

    monkeypatch.setattr(Answers, "generate_until", watched)
    evaluate(loaded, asked(folder, "write", limit=1, chat_template=True, num_fewshot=1))
    assert seen[0].startswith("<|user|>Question: what is")
    assert seen[0].endswith(f"<|user|>{context(QUESTIONS[0])}<|assistant|>")
    assert seen[0].count("<|assistant|>") == 2


@pytest.mark.slow
@with_harness
def test_what_cannot_be_evaluated_is_one_line(loaded: LoadedModel, folder: Path, tmp_path: Path) -> None:
    refusals = [
        (["elsewhere"], "tasks: 'elsewhere' needs data that are not on this machine .*nothing is downloaded"),
        (["broken"], "tasks: 'broken' cannot be used .*; mend its file"),
        (["unsafe"], "tasks: 'unsafe' runs code that the model writes"),
        ([str(tmp_path / "none.yaml")], r"tasks: there is no file .*none.yaml; give the path of a task's YAML file"),
        (["writ"], r"tasks: there is no task 'writ'; did you mean write"),
    ]
    for tasks, message in refusals:
        with pytest.raises(ConfigError, match=message) as error:
            evaluate(loaded, asked(folder, *tasks))
        assert "\n" not in str(error.value)
    assert evaluate(loaded, asked(folder, str(folder / "write.yaml"), limit=1))["tasks"]["write"]["questions"] == 1


CLOSED = """
import socket, sys
def refuse(*arguments, **options):
    raise AssertionError(f"a connection was tried: {arguments}")
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
socket.getaddrinfo = socket.create_connection = refuse
from difflm.cli.main import run
code = run(["eval", sys.argv[1], "--include-path", sys.argv[2], "--tasks", "echo,choose,write", "--limit", "1",
            "--max-new-tokens", "4", "--output", sys.argv[3]])
code += run(["eval", sys.argv[1], "--include-path", sys.argv[2], "--tasks", "elsewhere"]) != 2
sys.exit(code)
"""


@pytest.mark.slow
@with_harness
def test_no_connection_is_opened(files: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", CLOSED, str(files["paper"]), str(folder), str(tmp_path / "results.json")],
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == [
        "task", "metric", "value", "+-", "questions", "forwards", "TPF", "TPS",
    ]  # fmt: skip
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["tasks"]["choose"]["metrics"]["acc"]["value"] in (0.0, 1.0)


def test_without_the_extra_the_error_says_what_to_install(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[[str], Any] = importlib.import_module

    def without(name: str) -> Any:
        if name.startswith("lm_eval"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="lm_eval")
        return real(name)

    monkeypatch.setattr("difflm.evaluation.harness.importlib.import_module", without)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
        monkeypatch.setenv(name, "1")  # what the call sets is undone
    with pytest.raises(ConfigError, match=r"eval: lm_eval is not installed; pip install 'difflm\[eval\]'"):
        evaluate(loaded, Evaluation(tasks=["write"]))


def test_metrics_come_with_their_standard_errors() -> None:
    values = {
        "alias": "choose", "acc,none": 0.5, "acc_stderr,none": 0.1, "exact_match,strict": 0.25,
        "exact_match_stderr,strict": "N/A", "f1,none": 0.3, "f1_stderr,none": math.nan,
    }  # fmt: skip
    assert metrics(values, {"acc": True, "exact_match": True}) == {
        "acc": {"value": 0.5, "standard_error": 0.1, "higher_is_better": True},
        "exact_match (strict)": {"value": 0.25, "standard_error": None, "higher_is_better": True},
        "f1": {"value": 0.3, "standard_error": None, "higher_is_better": None},
    }
