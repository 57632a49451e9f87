"""lm-eval's clients of servers: a task of answers and one of choices, as through our own model class."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import pytest

from difflm.checkpoints.loading import LoadedModel
from difflm.decode.engine import generate
from difflm.decode.request import SamplingParams
from difflm.likelihood import Continuation, likelihoods
from tests.serving.servers import NAME, Running

pytestmark = [
    pytest.mark.slow,  # importing the harness alone takes longer than most tests
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None or importlib.util.find_spec("tenacity") is None,
        reason="lm-eval with its clients is in the extra [dev]; CI has it",
    ),
]
ROWS = [
    {"question": "in the", "choices": [" beginning", " word", " light"], "answer": 0},
    {"question": "a word", "choices": [" was", " and", " light"], "answer": 1},
    {"question": "light", "choices": [" in", " the", " word"], "answer": 2},
]
CHOOSE = {
    "task": "choose",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
WRITE = {
    "task": "write",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["t", "\n\n"], "max_gen_toks": 8, "temperature": 0},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def evaluated(model: str, server: Running, task: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return what the harness finds, with the samples."""
    dataset: Any = importlib.import_module("datasets").Dataset.from_list(ROWS)
    path = "chat/completions" if "chat" in model else "completions"
    arguments = {"base_url": f"{server.address}/v1/{path}", "model": NAME, "num_concurrent": 2, "max_length": 512}
    if "chat" not in model:
        arguments["tokenizer_backend"] = "remote"
    evaluator: Any = importlib.import_module("lm_eval.evaluator")
    given = {**task, "custom_dataset": lambda **_: {"test": dataset}, "test_split": "test"}
    return evaluator.simple_evaluate(
        model=model, model_args=arguments, tasks=[given], bootstrap_iters=0, log_samples=True, **more
    )


def test_choices_through_completions(server: Running, loaded: LoadedModel) -> None:
    """Report 46: what is scored is what the model says of the tokens, none left out."""
    found = evaluated("local-completions", server, CHOOSE)
    right = 0
    for sample in found["samples"]["choose"]:
        row = sample["doc"]
        context = loaded.encode(row["question"])
        asked = [
            Continuation(tokens=loaded.encode(row["question"] + choice)[len(context) :], prompt=context)
            for choice in row["choices"]
        ]
        expected = [each.log_likelihood for each in likelihoods(loaded, asked, kind="chain")]
        told = [float(each[0]) for each in sample["filtered_resps"]]
        assert told == pytest.approx(expected, rel=1e-3)
        right += expected.index(max(expected)) == row["answer"]
    assert found["results"]["choose"]["acc,none"] == pytest.approx(right / len(ROWS))


@pytest.mark.parametrize("model", ["local-completions", "local-chat-completions"])
def test_answers(model: str, server: Running, loaded: LoadedModel) -> None:
    chat = "chat" in model
    found = evaluated(model, server, WRITE, apply_chat_template=chat)
    params = SamplingParams(max_new_tokens=8, stop=("t", "\n\n"))
    for sample in found["samples"]["write"]:
        question = sample["doc"]["question"]
        prompt = loaded.encode_chat([{"role": "user", "content": question}]) if chat else loaded.encode(question)
        [expected] = generate(loaded, [prompt], params)
        assert sample["resps"] == [[expected.text]]
