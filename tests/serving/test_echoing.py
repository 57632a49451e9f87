"""Log-probabilities of a prompt's tokens are one likelihood, told token by token."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest

from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.decode.events import TokenLogprob
from difflm.decode.request import SamplingParams
from difflm.likelihood import Continuation, likelihoods
from difflm.serving import echoing
from difflm.serving.echoing import echo_kind, prompt_logprobs
from tests.drafters import drafters
from tests.serving.servers import NAME, Running, serving
from tests.serving.test_endpoints import alone

__all__ = ["drafters"]
TEXT = "in the beginning was a word"


def total(scores: tuple[TokenLogprob | int, ...]) -> float:
    return sum(each.logprob for each in scores if isinstance(each, TokenLogprob))


@pytest.mark.parametrize("name", ["paper", "shift", "parent", "drafter"])
def test_they_add_up_to_the_likelihood(name: str, files: dict[str, Path], drafters: Path) -> None:
    loaded = load_model(drafters / "drafter" if name == "drafter" else files[name])
    kind = echo_kind(loaded)
    assert kind == ("next_token" if name == "drafter" else "chain")
    ids = loaded.encode(TEXT)
    scores = prompt_logprobs(loaded, ids, 2)
    assert scores[0] == ids[0]
    assert [each.token for each in scores[1:] if isinstance(each, TokenLogprob)] == ids[1:]
    [whole] = likelihoods(loaded, [Continuation(tokens=ids[1:], prompt=ids[:1])], kind=kind)
    assert total(scores) == pytest.approx(whole.log_likelihood, rel=1e-4)
    # A part of them is the likelihood of that part behind what is before it.
    [part] = likelihoods(loaded, [Continuation(tokens=ids[9:], prompt=ids[:9])], kind=kind)
    assert total(scores[9:]) == pytest.approx(part.log_likelihood, rel=1e-4)
    best = all(each.top[0][0] == each.token for each in scores[9:] if isinstance(each, TokenLogprob))
    assert best == part.greedy


def test_the_chosen_token_and_the_best_have_one_number_where_they_are_one(loaded: LoadedModel) -> None:
    for each in prompt_logprobs(loaded, loaded.encode(TEXT), 5)[1:]:
        assert isinstance(each, TokenLogprob)
        assert [value for _, value in each.top] == sorted((value for _, value in each.top), reverse=True)
        assert all(value == each.logprob for token, value in each.top if token == each.token)
        assert sum(math.exp(value) for _, value in each.top) <= 1 + 1e-6


def test_logits_are_held_in_pieces(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = loaded.encode(TEXT)
    whole = prompt_logprobs(loaded, ids, 1)
    monkeypatch.setattr(echoing, "LOGITS_BYTES", 1)
    assert total(prompt_logprobs(loaded, ids, 1)) == pytest.approx(total(whole), rel=1e-5)


@pytest.mark.parametrize("ids", [[], [5]])
def test_what_has_nothing_before_it_has_none(ids: list[int], loaded: LoadedModel) -> None:
    assert prompt_logprobs(loaded, ids, 1) == tuple(ids)


# Through the server.


@pytest.mark.parametrize("block_size", [None, 1, 16])
@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_so_many_tokens_stand_behind_the_prompt(
    max_tokens: int, block_size: int | None, server: Running, loaded: LoadedModel
) -> None:
    ids = loaded.encode(TEXT)
    eos = {str(loaded.config.eos_token_ids[0]): 100}  # were it to end the answer, there would be none
    body: dict[str, Any] = {"prompt": [ids], "echo": True, "logprobs": 1, "max_tokens": max_tokens, "logit_bias": eos}
    body["diffusion"] = {"block_size": block_size}
    answer = server.post("/v1/completions", body).json()
    scores = answer["choices"][0]["logprobs"]
    assert {len(each) for each in scores.values()} == {len(ids) + max_tokens}
    assert scores["token_logprobs"][0] is scores["top_logprobs"][0] is None
    expected = [each.logprob for each in prompt_logprobs(loaded, ids, 1)[1:] if isinstance(each, TokenLogprob)]
    assert scores["token_logprobs"][1 : len(ids)] == pytest.approx(expected, abs=1e-4)
    assert answer["usage"]["completion_tokens"] == max_tokens
    assert answer["choices"][0]["text"].startswith(TEXT)
    assert scores["text_offset"] == sorted(scores["text_offset"])
    assert scores["text_offset"][len(ids) :][:1] in ([], [len(TEXT)])


def test_echo_without_scores_is_the_prompt_and_the_answer(server: Running, loaded: LoadedModel) -> None:
    body = {"prompt": ["in", "the word"], "echo": True, "max_tokens": 5, "n": 2, "temperature": 1, "seed": 3}
    params = SamplingParams(max_new_tokens=5, n=2, temperature=1, seed=3)
    expected = [f"{text}{each.text}" for text in ("in", "the word") for each in alone(loaded, text, params)]
    answer = server.post("/v1/completions", body).json()
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert all(choice["logprobs"] is None for choice in answer["choices"])


@pytest.mark.parametrize("max_tokens", [0, 4])
def test_streamed_it_is_the_same(max_tokens: int, server: Running) -> None:
    body = {"prompt": TEXT, "echo": True, "logprobs": 2, "max_tokens": max_tokens, "seed": 1}
    [whole] = server.post("/v1/completions", body).json()["choices"]
    text, scores = "", dict[str, list[Any]]()
    for line in server.post("/v1/completions", {**body, "stream": True}).text.split("\n\n")[:-2]:
        [choice] = json.loads(line.removeprefix("data: "))["choices"]
        text += choice["text"]
        for name, values in (choice["logprobs"] or {}).items():
            scores.setdefault(name, []).extend(values)
    assert text == whole["text"]
    assert {name: values for name, values in scores.items() if name not in ("token_logprobs", "top_logprobs")} == {
        name: values for name, values in whole["logprobs"].items() if name not in ("token_logprobs", "top_logprobs")
    }
    assert scores["token_logprobs"][1:] == pytest.approx(whole["logprobs"]["token_logprobs"][1:], abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": [10**6]}, "id 1000000 is not in the vocabulary"),
        ({"prompt": "in", "logprobs": 21}, "logprobs: 21"),
        ({"prompt": "in", "echo": False, "max_tokens": 0}, "max_tokens: 0 cannot be used without echo"),
    ],
    ids=str,
)
def test_refused(fields: dict[str, Any], message: str, server: Running) -> None:
    response = server.post("/v1/completions", {"echo": True, "logprobs": 1, "max_tokens": 0, **fields})
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_a_prompt_may_fill_the_context_where_nothing_follows(server: Running, loaded: LoadedModel) -> None:
    whole = [each for each in range(300) if each != loaded.config.mask_token_id and each > 10] * 2
    whole = whole[: loaded.config.model.max_positions]
    body: dict[str, Any] = {"prompt": [whole], "echo": True, "logprobs": 0, "max_tokens": 0}
    answer = server.post("/v1/completions", body).json()
    [choice] = answer["choices"]
    expected = prompt_logprobs(loaded, whole, 0)
    scores = [each.logprob for each in expected if isinstance(each, TokenLogprob)]
    assert len(scores) == len(whole) - 1
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(scores, abs=1e-4)
    assert choice["text"] == loaded.decode(whole, skip_special_tokens=False)
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (len(whole), 0)
    for more in ({"prompt": [[*whole, whole[0]]]}, {"max_tokens": 1}):
        error = server.post("/v1/completions", {**body, **more}).json()["error"]
        assert error["code"] == "context_length_exceeded"
    for wrong in ({"stop_token_ids": [10**6]}, {"diffusion": {"policy": "absent"}}):
        assert server.post("/v1/completions", {**body, **wrong}).status_code == 400, "it is checked all the same"


def test_the_mask_is_no_token_of_a_text(server: Running, loaded: LoadedModel) -> None:
    body = {"prompt": [1, loaded.config.mask_token_id], "echo": True, "logprobs": 1, "max_tokens": 0}
    assert "is the MASK token" in server.post("/v1/completions", body).json()["error"]["message"]


def test_a_failure_is_the_requests_alone(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise ValueError("broken")

    with serving(loaded) as server:
        body = {"prompt": TEXT, "echo": True, "logprobs": 1, "max_tokens": 1}
        with monkeypatch.context() as patch:
            patch.setattr("difflm.serving.planning.prompt_logprobs", fails)
            assert server.post("/v1/completions", body).status_code == 500
            assert '"error"' in server.post("/v1/completions", {**body, "stream": True}).text
        assert server.post("/v1/completions", body).status_code == 200
        assert server.service.bridge.active == 0


@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None or importlib.util.find_spec("tenacity") is None,
    reason="lm-eval with its clients is in the extra [dev]; CI has it",
)
def test_the_harness_scores_through_the_server_as_it_does_without(server: Running, loaded: LoadedModel) -> None:
    instance: Any = importlib.import_module("lm_eval.api.instance").Instance
    client: Any = importlib.import_module("lm_eval.models.openai_completions").LocalCompletionsAPI
    model = client(base_url=f"{server.address}/v1/completions", model=NAME, tokenizer_backend="remote", max_length=512)
    pairs = [("in the", " beginning"), ("in the", " word was light"), ("a", " word")]
    requests = [
        instance(request_type="loglikelihood", doc={}, arguments=pair, idx=number) for number, pair in enumerate(pairs)
    ]
    found = model.loglikelihood(requests)
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        whole, prompt = loaded.encode(context + continuation), loaded.encode(context)
        [expected] = likelihoods(
            loaded, [Continuation(tokens=whole[len(prompt) :], prompt=whole[: len(prompt)])], kind="chain"
        )
        assert value == pytest.approx(expected.log_likelihood, rel=1e-3)
        assert greedy == expected.greedy
