"""`difflm.policy`: names, settings, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import difflm
from difflm.decode.drawing import Draw
from difflm.decode.policies.hf import Hf20, Hf20Greedy, Hf21
from difflm.decode.policies.named import drafting_settings, parse_policy, policy
from difflm.decode.policies.native import Native
from difflm.decode.policies.verified import Verified
from difflm.decode.request import SamplingParams
from difflm.diffusion.acceptance import EntropyAcceptance, FixedAcceptance, ThresholdAcceptance
from difflm.errors import RequestError


def refusal(name: str, **settings: Any) -> str:
    with pytest.raises(RequestError) as refused:
        policy(name, **settings)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_each_name_has_the_defaults_of_its_system() -> None:
    assert difflm.policy is policy
    assert policy("hf20") == Hf20()
    assert type(policy("hf20-greedy")) is Hf20Greedy
    assert policy("hf21") == Hf21()
    given = dataclasses.asdict(Hf21())
    assert (given["threshold"], given["editing_threshold"], given["max_post_steps"]) == (0.95, 0.9, 16)
    assert given["steps"] == given["block_length"] == 32
    assert policy("sglang") == policy("sglang", threshold=0.95)
    assert policy("sglang", edit_threshold=0) == policy("sglang", algorithm="JointThreshold", threshold=0.5)
    assert policy("dinfer") == policy("dinfer", threshold=0.9, parallel_decoding="threshold")
    assert policy("native") == Native()
    assert policy("verified") == Verified()


def test_a_line_names_a_policy() -> None:
    line = "hf21:threshold=0.7,max_post_steps=4,eos_early_stop=True,top_k=None"
    assert parse_policy(line) == Hf21(threshold=0.7, max_post_steps=4, eos_early_stop=True)
    assert parse_policy("dinfer:parallel_decoding=hierarchy") == policy("dinfer", parallel_decoding="hierarchy")
    assert parse_policy("hf20") == Hf20()
    with pytest.raises(RequestError, match="write NAME:SETTING=VALUE"):
        parse_policy("hf20:0.7")


def test_none_is_the_default_of_every_setting() -> None:
    assert policy("hf21", top_k=None, threshold=None, eos_id=None) == Hf21()
    assert policy("native", threshold=None, min_accept=None) == Native()


def test_native_strategies() -> None:
    def strategy(**settings: Any) -> object:
        made = policy("native", **settings)
        assert isinstance(made, Native)
        return made.acceptance

    assert strategy(threshold=0.5, min_accept=2) == ThresholdAcceptance(0.5, 2)
    assert strategy(min_accept=3) == ThresholdAcceptance(0.95, 3)
    assert strategy(fixed=4) == FixedAcceptance(4)
    assert strategy(entropy_bound=0.1) == EntropyAcceptance(0.1)
    assert "different strategies" in refusal("native", fixed=4, entropy_bound=0.1)
    assert "different strategies" in refusal("native", fixed=4, min_accept=2)
    assert policy("native", presence_penalty=-0.5, frequency_penalty=-1) == Native(
        presence_penalty=-0.5, frequency_penalty=-1
    )


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("window", 4),
        ("start", 3),
        ("fused", False),
        ("fallback", False),
        ("row_cost", 0.2),
        ("draft_cost", 0.7),
        ("check", "ratio"),
        ("draft", "best"),
        ("min_tokens", 5),
    ],
)
def test_each_setting_of_verified(setting: str, value: Any) -> None:
    expected = dataclasses.replace(Verified(), **{setting: value})
    assert policy("verified", **{setting: value}) == expected != Verified()
    assert parse_policy(f"verified:{setting}={value}") == expected
    assert policy("verified", **{setting: None}) == Verified()
    if setting == "min_tokens":
        with pytest.raises(RequestError, match="here: it has no setting 'min_tokens'"):
            drafting_settings({setting: value}, where="here")
    else:
        assert drafting_settings({setting: value}, where="here") == expected


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", 0.5),
        ("top_k", 3),
        ("top_p", 0.5),
        ("min_p", 0.1),
        ("repetition_penalty", 1.5),
        ("presence_penalty", -0.5),
        ("frequency_penalty", 0.5),
    ],
)
def test_verified_draws_as_its_settings_say(setting: str, value: Any) -> None:
    assert policy("verified", **{setting: value}) == Verified(draw=Draw(**{setting: value}))
    with pytest.raises(RequestError, match=f"here: it has no setting '{setting}'"):
        drafting_settings({setting: value}, where="here")


def test_a_bias_of_verified_is_in_order() -> None:
    assert policy("verified", logit_bias={4: 1.0, 2: -1.0}) == Verified(draw=Draw(logit_bias=((2, -1.0), (4, 1.0))))


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("verified", {"window": 1}, "policy verified: window 1 cannot be used; give an integer >= 2"),
        ("verified", {"window": 4.0}, "an integer >= 2"),
        ("verified", {"start": 0}, "an integer >= 2"),
        ("verified", {"fused": "always"}, "fused 'always' cannot be used; give True or False"),
        ("verified", {"fallback": 1}, "give True or False"),
        ("verified", {"check": "greedy"}, "check 'greedy' cannot be used; choose one of same, ratio"),
        ("verified", {"draft": "top"}, "choose one of drawn, best"),
        ("verified", {"row_cost": -0.1}, "a finite number >= 0"),
        ("verified", {"draft_cost": -0.1}, "a finite number >= 0"),
        ("verified", {"min_tokens": -1}, "an integer >= 0"),
        ("verified", {"draw": Draw()}, "it has no setting 'draw'; its settings are check, draft, draft_cost, fallback"),
        ("verified", {"keyed": False}, "no setting 'keyed'"),
        ("verified", {"suppressed": (1,)}, "no setting 'suppressed'"),
        ("verified", {"block_length": 4}, "no setting 'block_length'"),
        ("verified", {"threshold": 0.5}, "no setting 'threshold'"),
        ("hf19", {}, "choose one of hf20"),
        ("hf20", {"editing_threshold": 0.5}, "no setting 'editing_threshold'"),
        ("sglang", {"block_length": 4}, "no setting 'block_length'"),
        ("sglang", {"algorithm": "Entropy"}, "LowConfidence, JointThreshold"),
        ("sglang", {"algorithm": "LowConfidence", "edit_threshold": 0.5}, "no setting 'edit_threshold'"),
        ("dinfer", {"parallel_decoding": "credit"}, "threshold, hierarchy"),
        ("dinfer", {"parallel_decoding": "hierarchy", "use_credit": True}, "use_credit"),
        ("dinfer", {"low_threshold": 0.5}, "no setting 'low_threshold'"),
        ("hf21", {"editing_threshold": -1}, "1 switches editing off"),
        ("hf21", {"threshold": "high"}, "a finite number >= 0"),
        ("hf21", {"threshold": True}, "a finite number >= 0"),
        ("hf21", {"max_post_steps": 1.5}, "an integer >= 0"),
        ("hf21", {"block_length": 0}, "an integer >= 1"),
        ("hf20", {"eos_early_stop": 1}, "True or False"),
        ("hf20", {"top_p": 1.5}, "at most 1"),
        ("native", {"fixed": 0}, "an integer >= 1"),
        ("native", {"temperature": 10**400}, "cannot be used; give a finite number"),
        ("native", {"presence_penalty": "high"}, "presence_penalty: 'high' cannot be used; give a finite number"),
        ("native", {"logit_bias": [3]}, "logit_bias: [3] cannot be used; give a mapping"),
    ],
)
def test_refusals_name_the_setting(name: str, settings: dict[str, Any], said: str) -> None:
    assert said in refusal(name, **settings)


@pytest.mark.parametrize("field", ["threshold", "block_size", "temperature", "min_accept", "decoding"])
def test_a_parameter_beside_a_policy_that_decides_it_is_refused(field: str) -> None:
    value: Any = "next_token" if field == "decoding" else 2
    with pytest.raises(RequestError, match=f"{field}: .* no effect beside a policy"):
        SamplingParams(policy=policy("hf20"), **{field: value})
    assert SamplingParams(policy=policy("hf20"), max_new_tokens=7, seed=3, ignore_eos=True).policy == Hf20()
