"""Errors name field, value and fix, in the form that clients know, and tell nothing of the inside."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from difflm.errors import RequestError
from difflm.serving.errors import ApiError, internal, not_usable, not_valid, of_field, unanswered
from difflm.serving.failures import Draining, EngineDead, EngineFailed, Overloaded, TimedOut, Unanswered
from difflm.serving.schema import ChatRequest, CompletionRequest


def error_of(kind: Any, body: str) -> ApiError:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate_json(body)
    return not_valid(caught.value)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"prompt": 1}, "prompt", "prompt: give a text, a list of texts, a list of token ids, or a list of such lists"),
        ({"prompt": [1, "a"]}, "prompt", "prompt: give a text, a list of texts, a list of token ids"),
        ({"n": 99}, "n", "n: 99 cannot be used; input should be less than or equal to 16"),
        ({"stop": 5}, "stop", "stop: give a text, or a list of texts"),
        ({"logit_bias": {"5": 1000}}, "logit_bias.5", "logit_bias.5: 1000 cannot be used; "),
        ({"diffusion": {"treshold": 1}}, "diffusion.treshold", "diffusion.treshold: 1 cannot be used; extra inputs"),
        ({"diffusion": {"policy": {"x": 1}}}, "diffusion.policy.name", "diffusion.policy.name: it is missing"),
        ([], None, "body: "),
    ],
    ids=str,
)
def test_bodies(body: Any, param: str | None, message: str) -> None:
    error = error_of(CompletionRequest, json.dumps(body))
    assert (error.status, error.param) == (400, param)
    assert error.message.startswith(message), error.message


def test_conversations() -> None:
    error = error_of(ChatRequest, '{"messages": [{"role": "user", "content": "a"}, {"role": "king"}]}')
    assert error.param == "messages[1].role"
    body = '{"messages": [{"role": "user", "content": [{"type": 5}]}]}'
    assert error_of(ChatRequest, body).param == "messages[0].content[0].type"
    body = '{"messages": [{"role": "user"}], "tool_choice": {"type": "function"}}'
    assert error_of(ChatRequest, body).message == "tool_choice.function: it is missing"
    assert error_of(ChatRequest, "{}").message == "messages: it is missing"


@pytest.mark.parametrize("body", ["", "{", "nonsense", '{"prompt": "x"} x', "\x00"])
def test_no_json(body: str) -> None:
    error = error_of(CompletionRequest, body)
    assert (error.status, error.param) == (400, None)
    assert error.message.startswith("body: ")


def test_parameters_of_the_engine_have_the_requests_names() -> None:
    error = not_usable(RequestError("max_new_tokens: 0 cannot be used"))
    assert (error.param, error.message) == ("max_tokens", "max_tokens: 0 cannot be used")
    assert not_usable(RequestError("policy hf21: it has no setting 'x'")).param == "diffusion.policy"
    assert not_usable(RequestError("text: it is damaged"), where="prompt").param == "prompt"
    assert of_field("a.b", "wrong", code="c").body == {
        "error": {"message": "a.b: wrong", "type": "invalid_request_error", "param": "a.b", "code": "c"}
    }


@pytest.mark.parametrize(
    ("failure", "status", "headers"),
    [
        (Overloaded("full", retry_after=9), 429, {"Retry-After": "9"}),
        (Draining("soon"), 503, {"Retry-After": "1"}),
        (EngineDead("gone"), 503, {}),
        (TimedOut("late"), 504, {"x-should-retry": "false"}),
        (EngineFailed("CUDA error: secret path /root"), 500, {}),
        (Unanswered("secret"), 500, {}),
    ],
    ids=str,
)
def test_failures(failure: Unanswered, status: int, headers: dict[str, str]) -> None:
    error = unanswered(failure)
    assert (error.status, dict(error.headers)) == (status, headers)
    assert "secret" not in error.message


def test_defects_say_nothing() -> None:
    assert internal().body["error"]["message"] == "internal error"
