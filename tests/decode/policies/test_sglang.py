"""The policies of SGLang against a transcription of their rules, on random logits."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.decode.policies.named import policy
from difflm.decode.policies.sglang import JointThreshold, LowConfidence
from tests.decode.policies import transcriptions as plain

PROMPTS = st.lists(st.integers(0, plain.MASK - 1), max_size=9)
SETTINGS = {
    "prompt": PROMPTS,
    "seed": st.integers(0, 10**6),
    "size": st.sampled_from((1, 3, 4)),
    "new": st.integers(1, 10),
    "threshold": st.sampled_from((0.0, 0.4, 0.8, 0.95)),
    "mask_bonus": st.sampled_from((-2.0, 0.0, 2.0)),
}


@settings(max_examples=150, deadline=None)
@given(**SETTINGS)
def test_low_confidence(prompt: list[int], seed: int, size: int, new: int, threshold: float, mask_bonus: float) -> None:
    logits = plain.random_logits(seed, sharpness=2.0, mask_bonus=mask_bonus)
    expected = plain.sglang_low(prompt, logits, size=size, new=new, threshold=threshold)
    found = plain.drive(LowConfidence(threshold=threshold), prompt, logits, size=size, new=new)
    assert (found.tokens, found.forwards, found.trace) == (expected.tokens, expected.forwards, expected.trace)


@settings(max_examples=150, deadline=None)
@given(
    **SETTINGS,
    edit=st.sampled_from((0.0, 0.5, 1.0)),
    post_steps=st.sampled_from((0, 1, 4)),
    penalty=st.sampled_from((0.0, 1.5)),
)
def test_joint_threshold(
    prompt: list[int],
    seed: int,
    size: int,
    new: int,
    threshold: float,
    mask_bonus: float,
    edit: float,
    post_steps: int,
    penalty: float,
) -> None:
    logits = plain.random_logits(seed, sharpness=2.0, mask_bonus=mask_bonus)
    options = {"threshold": threshold, "edit": edit, "post_steps": post_steps, "penalty": penalty}
    expected = plain.sglang_joint(prompt, logits, size=size, new=new, **options)  # type: ignore[arg-type]
    joint = JointThreshold(
        threshold=threshold, edit_threshold=edit, max_post_edit_steps=post_steps, penalty_lambda=penalty
    )
    found = plain.drive(joint, prompt, logits, size=size, new=new)
    assert (found.tokens, found.forwards, found.trace) == (expected.tokens, expected.forwards, expected.trace)


def sure(token: int, confidence: float) -> list[float]:
    """Return logits under which a token has a probability."""
    rest = math.log((1 - confidence) / (plain.VOCAB - 1))
    return [math.log(confidence) if i == token else rest for i in range(plain.VOCAB)]


def test_a_mask_that_is_always_preferred_is_returned_when_the_forwards_run_out() -> None:
    logits = plain.fixed_logits({i: sure(plain.MASK if i == 1 else 5, 0.9) for i in range(4)})
    found = plain.drive(LowConfidence(threshold=0.5), [], logits, size=4, new=4)
    assert found.tokens == [5, plain.MASK, 5, 5]
    assert found.forwards == 4


@pytest.mark.parametrize(
    ("settings_", "kind"), [({}, LowConfidence), ({"edit_threshold": 0.0}, JointThreshold), ({"threshold": 0.1}, None)]
)
def test_the_algorithm_is_joint_where_an_edit_setting_is_given(settings_: dict[str, float], kind: type | None) -> None:
    assert type(policy("sglang", **settings_)) is (kind or LowConfidence)
    assert type(policy("sglang", algorithm="JointThreshold")) is JointThreshold
    assert policy("sglang", block_size=4).block_length == 4
