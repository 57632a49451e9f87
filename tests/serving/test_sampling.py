"""Fields of a request reach the engine, each under its own name and within bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from difflm.decode.policies.hf import Hf21
from difflm.decode.policies.native import Native
from difflm.decode.policies.verified import Verified
from difflm.decode.request import SamplingParams
from difflm.errors import RequestError
from difflm.serving.errors import ApiError
from difflm.serving.limits import Defaults, Limits
from difflm.serving.sampling import sampling_params
from difflm.serving.schema import CompletionRequest

LIMITS = Limits(block_size=64, least_threshold=0.3, post_steps=8, stops=2, stop_characters=5, biases=2)


def params(defaults: Defaults | None = None, **fields: Any) -> SamplingParams:
    asked = CompletionRequest.model_validate_json(json.dumps({"prompt": "x", "seed": 1, **fields}))
    return sampling_params(asked, new_tokens=9, logprobs=None, defaults=defaults or Defaults(), limits=LIMITS)


def test_nothing_given_is_the_engines_default() -> None:
    assert params() == SamplingParams(max_new_tokens=9, seed=1)


def test_every_field_arrives() -> None:
    given = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "presence_penalty": -1.0,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.1,
        "seed": 3,
        "ignore_eos": True,
        "min_tokens": 2,
        "n": 2,
    }
    found = params(stop=["a", "b"], stop_token_ids=[4], logit_bias={"5": -1}, **given)
    assert found == SamplingParams(
        max_new_tokens=9, stop=("a", "b"), stop_token_ids=(4,), logit_bias={5: -1.0}, **given
    )
    assert params(stop="a").stop == ("a",)
    assert params(top_k=-1).top_k == 0


def test_the_diffusion_fields_arrive() -> None:
    editing = {"threshold": 0.8, "max_post_steps": 4}
    found = params(diffusion={"block_size": 4, "threshold": 0.5, "min_accept": 2, "editing": editing})
    assert found == SamplingParams(
        max_new_tokens=9,
        seed=1,
        block_size=4,
        threshold=0.5,
        min_accept=2,
        editing_threshold=0.8,
        max_post_steps=4,
    )
    assert params(diffusion={"decoding": "next_token"}).decoding == "next_token"


def test_without_a_seed_each_request_has_its_own() -> None:
    assert len({params(seed=None).seed for _ in range(5)}) == 5
    assert params(seed=0).seed == 0
    assert params(seed=-1).seed == 2**63 - 1


def test_the_server_s_defaults_hold_where_a_request_does_not_say() -> None:
    own = Defaults(temperature=0.6, top_p=0.9, top_k=3, block_size=16, threshold=0.9, decoding="block")
    found = params(own)
    assert (found.temperature, found.top_p, found.top_k) == (0.6, 0.9, 3)
    assert (found.block_size, found.threshold, found.decoding) == (16, 0.9, "block")
    found = params(own, temperature=0, diffusion={"block_size": 4, "decoding": "next_token"})
    assert (found.temperature, found.block_size, found.threshold, found.decoding) == (0.0, 4, 0.9, "next_token")


def test_policies_by_name_and_with_settings() -> None:
    named = params(diffusion={"policy": "hf21:threshold=0.6"}).policy
    told = params(diffusion={"policy": {"name": "hf21", "threshold": 0.6, "steps": None}}).policy
    assert isinstance(named, Hf21)
    assert named == told
    assert named.threshold == 0.6


def test_a_policy_draws_as_the_request_says() -> None:
    verified = params(diffusion={"policy": "verified"}, temperature=0.5, min_tokens=2, logit_bias={"3": 1}).policy
    assert isinstance(verified, Verified)
    assert (verified.draw.temperature, verified.min_tokens, verified.draw.logit_bias) == (0.5, 2, ((3, 1.0),))
    native = params(Defaults(temperature=0.4), diffusion={"policy": "native"}, presence_penalty=1).policy
    assert isinstance(native, Native)
    assert (native.temperature, native.presence_penalty) == (0.4, 1.0)


def test_a_policy_of_the_server_gives_way_to_the_request() -> None:
    own = Defaults(policy=("hf21", {"temperature": 0.5, "threshold": 0.6}), temperature=0.9)
    found = params(own).policy
    assert isinstance(found, Hf21)
    assert (found.temperature, found.threshold) == (0.5, 0.6)
    found = params(own, temperature=0.2).policy
    assert isinstance(found, Hf21)
    assert found.temperature == 0.2
    assert params(own, diffusion={"block_size": 4}).policy is None
    assert params(Defaults(policy=("native", {"temperature": 2.5}))).policy is not None, "bounds are for requests"
    assert params(own, temperature=0, presence_penalty=0).policy is not None


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"diffusion": {"block_size": 65}}, "diffusion.block_size", "65; give at most 64"),
        ({"diffusion": {"threshold": 0.2}}, "diffusion.threshold", "give at least 0.3"),
        ({"diffusion": {"editing": {"threshold": 1, "max_post_steps": 9}}}, "diffusion.editing.max_post_steps", "8"),
        ({"diffusion": {"policy": "hf21:threshold=0.1"}}, "diffusion.policy", "threshold 0.1; give at least 0.3"),
        ({"diffusion": {"policy": "hf20:block_length=99"}}, "diffusion.policy", "block_length 99; give at most 64"),
        ({"diffusion": {"policy": {"name": "verified", "window": 99}}}, "diffusion.policy", "give at most 64"),
        ({"diffusion": {"policy": "hf21:max_forwards=1000000"}}, "diffusion.policy", "give at most 4096"),
        ({"diffusion": {"policy": "native:temperature=2.5"}}, "diffusion.policy", "temperature 2.5; give at most 2"),
        ({"diffusion": {"policy": "native:presence_penalty=-3"}}, "diffusion.policy", "give at most 2"),
        ({"diffusion": {"policy": "sglang:penalty_lambda=1e308"}}, "diffusion.policy", "give at most 1e+06"),
        ({"diffusion": {"policy": {"name": "hf21", "top_k": 10**400}}}, "diffusion.policy", "give at most 1e+06"),
        ({"diffusion": {"policy": "hf20:gen_length=5"}}, "diffusion.policy", "gen_length is not for requests"),
        ({"diffusion": {"policy": "hf21", "threshold": 0.5}}, "diffusion.threshold", "beside diffusion.policy"),
        ({"diffusion": {"policy": "sglang"}, "temperature": 1}, "temperature", "'sglang' has no such setting"),
        ({"stop": ["a", "b", "c"]}, "stop", "3 strings; give at most 2"),
        ({"stop": "abcdef"}, "stop", "strings of 1 to 5 characters"),
        ({"stop": [""]}, "stop", "strings of 1 to 5 characters"),
        ({"logit_bias": {"1": 1, "2": 1, "3": 1}}, "logit_bias", "3 entries; give at most 2"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "'x' is no token id"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "'-1' is no token id"),
    ],
    ids=str,
)
def test_refused(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        params(**fields)
    assert caught.value.param == param
    assert message in caught.value.message
    assert caught.value.message.startswith(param)


def test_what_only_the_engine_knows_it_refuses() -> None:
    with pytest.raises(RequestError, match="policy: 'nope' is unknown"):
        params(diffusion={"policy": "nope"})
    with pytest.raises(RequestError, match="min_tokens: 10 is more than max_new_tokens 9"):
        params(min_tokens=10)


def test_ordinary_clients_are_served_under_any_policy() -> None:
    """They always send fields that change nothing."""
    neutral = {"temperature": 0.0, "top_p": 1.0, "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}}
    for name in ("native", "verified", "hf20", "hf20-greedy", "hf21", "sglang", "dinfer"):
        assert params(diffusion={"policy": name}, **neutral).policy is not None
