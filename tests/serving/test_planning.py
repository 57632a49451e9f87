"""Plans: everything that can be refused is refused before the engine hears of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from difflm.checkpoints.loading import LoadedModel
from difflm.serving.errors import ApiError
from difflm.serving.limits import Defaults, Limits
from difflm.serving.pieces import Pieces
from difflm.serving.planning import Plan, Planner

HELLO = [{"role": "user", "content": "in the beginning"}]


def planner(loaded: LoadedModel, *, cache_tokens: int = 10_000, **limits: Any) -> Planner:
    return Planner(
        loaded=loaded,
        name="tiny",
        limits=Limits(**limits),
        defaults=Defaults(),
        cache_tokens=cache_tokens,
        pieces=Pieces(loaded.tokenizer),
    )


def text(loaded: LoadedModel, **fields: Any) -> Plan:
    return planner(loaded).text(json.dumps({"prompt": "in the", **fields}).encode())


def chat(loaded: LoadedModel, **fields: Any) -> Plan:
    return planner(loaded).chat(json.dumps({"messages": HELLO, **fields}).encode())


def refusal(call: Any, *arguments: Any, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        call(*arguments, **fields)
    return caught.value


def test_answers_are_numbered_by_prompt_then_by_answer(loaded: LoadedModel) -> None:
    plan = text(loaded, prompt=["in", "the"], n=2, seed=5)
    assert [answer.index for answer in plan.answers] == [0, 1, 2, 3]
    assert [answer.prompt for answer in plan.answers] == [tuple(plan.prompts[i]) for i in (0, 0, 1, 1)]
    assert [answer.seed for answer in plan.answers[:2]] == [answer.seed for answer in plan.answers[2:]]
    assert plan.answers[0].seed == 5 != plan.answers[1].seed
    assert [order.params.seed for order in plan.orders] == [answer.seed for answer in plan.answers]


def test_lengths(loaded: LoadedModel) -> None:
    assert text(loaded).orders[0].params.max_new_tokens == 16
    assert text(loaded, max_tokens=1).orders[0].params.max_new_tokens == 1
    prompt = loaded.encode_chat(HELLO)
    assert chat(loaded).orders[0].params.max_new_tokens == 512 - len(prompt)
    assert chat(loaded, max_tokens=5).orders[0].params.max_new_tokens == 5
    assert chat(loaded, max_tokens=5, max_completion_tokens=7).orders[0].params.max_new_tokens == 7
    body = json.dumps({"messages": HELLO}).encode()
    assert planner(loaded, new_tokens=20).chat(body).orders[0].params.max_new_tokens == 20


@pytest.mark.parametrize("extra", [0, 1])
def test_the_context_is_filled_to_the_last_token_and_never_cut(extra: int, loaded: LoadedModel) -> None:
    prompt = [1] * (500 + extra)
    if not extra:
        assert len(text(loaded, prompt=prompt, max_tokens=12).orders[0].prompt) == 500
        return
    error = refusal(text, loaded, prompt=prompt, max_tokens=12)
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "prompt")
    assert error.message == (
        "prompt: 501 tokens and 12 new ones do not fit the context of 512; shorten it or lower max_tokens"
    )
    assert refusal(text, loaded, prompt=[1] * 512).code == "context_length_exceeded"


def test_the_engines_cache_is_a_bound_as_well(loaded: LoadedModel) -> None:
    body = json.dumps({"prompt": [1] * 30, "max_tokens": 11}).encode()
    error = refusal(planner(loaded, cache_tokens=40).text, body)
    assert "the context of 40" in error.message


def test_models(loaded: LoadedModel) -> None:
    for name in ("tiny", "", None):
        assert text(loaded, model=name).form.model == "tiny"
    error = refusal(text, loaded, model="gpt-4")
    assert (error.status, error.code) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"tools": [{}]}, "tools"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": [999_999]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"stop_token_ids": [999_999]}, "stop_token_ids"),
        ({"diffusion": {"policy": "verified"}}, "diffusion.decoding"),
        ({"diffusion": {"policy": "hf21:nope=1"}}, "diffusion.policy"),
        ({"diffusion": {"block_size": 200}}, None),
    ],
    ids=str,
)
def test_refused(fields: dict[str, Any], param: str | None, loaded: LoadedModel) -> None:
    if param is None:
        assert text(loaded, **fields).orders[0].capacity == 200
        return
    error = refusal(text, loaded, **fields)
    assert (error.status, error.param) == (400, param), error.message
    assert param.split(".")[-1] in error.message


def test_the_mask_is_refused_in_a_prompt_of_ids(loaded: LoadedModel) -> None:
    assert "is the MASK token" in refusal(text, loaded, prompt=[1, loaded.config.mask_token_id]).message


def test_log_probabilities(loaded: LoadedModel) -> None:
    assert text(loaded).orders[0].params.logprobs is None
    assert text(loaded, logprobs=0).orders[0].params.logprobs == 0
    assert chat(loaded, logprobs=True).orders[0].params.logprobs == 0
    assert chat(loaded, logprobs=True, top_logprobs=3).orders[0].params.logprobs == 3
    assert chat(loaded, logprobs=False).orders[0].params.logprobs is None
    assert refusal(chat, loaded, top_logprobs=3).param == "top_logprobs"


def test_denoising_is_watched_only_where_it_is_streamed(loaded: LoadedModel) -> None:
    options = {"stream": True, "stream_options": {"denoising": True}}
    assert chat(loaded, **options).orders[0].watched
    assert not chat(loaded, stream=True).orders[0].watched
