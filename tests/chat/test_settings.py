"""Settings: what was chosen and nothing else, checked when it is chosen."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from difflm.chat.settings import NAMES, Settings
from difflm.decode.policies.named import policy
from difflm.decode.request import SamplingParams
from difflm.errors import RequestError


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("threshold", "0.9", SamplingParams(threshold=0.9)),
        ("max_tokens", "7", SamplingParams(max_new_tokens=7)),
        ("max_new_tokens", "7", SamplingParams(max_new_tokens=7)),
        ("decoding", "next_token", SamplingParams(decoding="next_token")),
        ("policy", "hf21:threshold=0.7", SamplingParams(policy=policy("hf21", threshold=0.7))),
        ("stop", "end of it", SamplingParams(stop=("end of it",))),
        ("stop", "5", SamplingParams(stop=("5",))),
        ("stop", '["a", "b"]', SamplingParams(stop=("a", "b"))),
        ("stop_token_ids", "5", SamplingParams(stop_token_ids=(5,))),
        ("stop_token_ids", "[5, 6]", SamplingParams(stop_token_ids=(5, 6))),
        ("logit_bias", '{"42": -5}', SamplingParams(logit_bias={42: -5})),
        ("ignore_eos", "true", SamplingParams(ignore_eos=True)),
    ],
)
def test_a_value_is_that_of_the_parameters(name: str, text: str, expected: SamplingParams) -> None:
    assert Settings().changed(name, text).params() == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("temprature", "1", r"/set: no setting 'temprature'; did you mean temperature\?"),
        ("zzz", "1", r"/set: no setting 'zzz'; there are block_size, .*max_tokens"),
        ("n", "2", "/set: no setting 'n'; "),
        ("logprobs", "2", "/set: no setting 'logprobs'"),
        ("max_tokens", "none", "max_new_tokens"),
        ("max_tokens", "1.5", "max_new_tokens"),
        ("threshold", "NaN", "threshold"),
        ("decoding", "blocks", "decoding: 'blocks' is unknown"),
        ("policy", "absent", "policy"),
        ("logit_bias", '{"a": 1}', "logit_bias: .* has keys that are no ids"),
        ("stop_token_ids", "a", "stop_token_ids"),
        ("stop", '""', "stop"),
    ],
)
def test_what_cannot_be_used_is_refused(name: str, text: str, message: str) -> None:
    settings = Settings({"threshold": 0.5})
    with pytest.raises(RequestError, match=message):
        settings.changed(name, text)
    assert settings == Settings({"threshold": 0.5})


def test_a_choice_can_be_taken_back() -> None:
    settings = Settings().changed("policy", "hf21").changed("seed", "3")
    with pytest.raises(RequestError, match="threshold"):
        settings.changed("threshold", "0.9")
    assert settings.changed("policy", "default").changed("threshold", "0.9").given == {"seed": 3, "threshold": 0.9}
    assert settings.changed("policy", "null").given == {"seed": 3}


def test_every_setting_can_be_shown() -> None:
    assert {*NAMES, "n", "logprobs", "guesses", "constraint"} >= {
        each.name for each in dataclasses.fields(SamplingParams)
    }
    values: dict[str, Any] = {"threshold": 0.9, "policy": "hf21", "stop": ("a",)}
    shown = {name: Settings(values).shown(name, None) for name in NAMES}
    assert shown["threshold"] == "0.9"
    assert shown["policy"] == "hf21"
    assert shown["stop"] == '["a"]'
    assert shown["max_new_tokens"] == "128"
    assert shown["block_size"] == "the model's"
    assert Settings(values).shown("temperature", "the server's") == "the server's"
