"""Bodies as clients send them: what is taken, and what it means."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from difflm.serving.errors import not_valid
from difflm.serving.schema import ChatRequest, CompletionRequest, NamedPolicy


def completion(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate_json(json.dumps(fields))


def test_nulls_are_absent() -> None:
    names = [name for name in CompletionRequest.model_fields if name != "prompt"]
    given = completion(prompt="x", **dict.fromkeys(names))
    assert given.model_dump() == completion(prompt="x").model_dump()


@pytest.mark.parametrize("prompt", ["x", ["x", "y"], [1, 2], [[1, 2], [3]], [], [[]], ""])
def test_prompts_of_every_form(prompt: Any) -> None:
    assert completion(prompt=prompt).prompt == prompt


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": 1},
        {"prompt": [1, "x"]},
        {"prompt": [[1], "x"]},
        {"prompt": [1.5]},
        {"prompt": [True]},
        {"n": "2"},
        {"n": True},
        {"n": 5_000_000},
        {"n": 0},
        {"temperature": "1"},
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"seed": 2**63},
        {"seed": 1.5},
        {"logprobs": 10**9},
        {"logprobs": True},
        {"stop": [1]},
        {"stream": "yes"},
        {"stream": 1},
        {"logit_bias": {"5": "x"}},
        {"logit_bias": [5]},
        {"max_tokens": -1},
        {"max_tokens": 10**30},
        {"diffusion": {"block": 4}},
        {"diffusion": {"block_size": 0}},
        {"diffusion": {"editing": True}},
        {"diffusion": []},
        {"stream_options": True},
    ],
    ids=str,
)
def test_refused(fields: dict[str, Any]) -> None:
    if fields.get("max_tokens") == 10**30:
        assert completion(**fields).max_tokens == 10**30  # too long for any model; said with its limit
        return
    with pytest.raises(ValidationError):
        completion(**fields)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_are_finite(number: str) -> None:
    with pytest.raises(ValidationError):
        CompletionRequest.model_validate_json(f'{{"prompt": "x", "temperature": {number}}}')


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_parameters_of_functions_are_json(number: str) -> None:
    function = f'{{"name": "f", "parameters": {{"properties": {{"a": {{"maximum": {number}}}}}}}}}'
    body = f'{{"messages": [{{"role": "user"}}], "tools": [{{"type": "function", "function": {function}}}]}}'
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate_json(body)
    error = not_valid(caught.value)
    assert error.message == "tools[0].function.parameters: it holds NaN or a number that is too large; give JSON"


def test_deep_bodies_are_refused_and_not_a_crash() -> None:
    with pytest.raises(ValidationError):
        CompletionRequest.model_validate_json('{"prompt": "x", "a": ' + "[" * 100_000 + "]" * 100_000 + "}")


@pytest.mark.parametrize(
    "messages", [None, "string", [], [123], [{}], [{"role": 123}], [{"role": "user", "content": 1}]]
)
def test_conversations_of_other_forms(messages: Any) -> None:
    with pytest.raises(ValidationError):
        ChatRequest.model_validate_json(json.dumps({"messages": messages}))


def test_unknown_fields_are_kept_apart() -> None:
    given = completion(prompt="x", tools=None, user="me", stream_options={"include_usage": True, "new": 1})
    assert given.extra == {"user": "me"}
    policy = completion(prompt="x", diffusion={"policy": {"name": "hf21", "threshold": 0.5}}).diffusion
    assert policy is not None
    assert isinstance(policy.policy, NamedPolicy)
    assert policy.policy.model_extra == {"threshold": 0.5}
