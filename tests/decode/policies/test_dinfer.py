"""The policies of dInfer against a transcription of their rules, on random logits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.decode.policies.dinfer import Credit, Hierarchy, Threshold
from difflm.decode.policies.named import policy
from tests.decode.policies import transcriptions as plain

DECODERS: list[tuple[Any, dict[str, float]]] = [
    (Threshold, {}),
    (Credit, {"alpha": 0.7, "beta": 0.8, "gamma": 0.2}),
    (Hierarchy, {"low": 0.3}),
]


@pytest.mark.parametrize(("kind", "options"), DECODERS)
@settings(max_examples=100, deadline=None)
@given(
    prompt=st.lists(st.integers(0, plain.MASK - 1), max_size=9),
    seed=st.integers(0, 10**6),
    size=st.sampled_from((1, 3, 4)),
    new=st.integers(1, 10),
    threshold=st.sampled_from((0.0, 0.4, 0.8, 0.95)),
    early=st.booleans(),
    mask_bonus=st.sampled_from((-2.0, 0.0, 3.0)),
)
def test_the_rule_and_the_loop(
    kind: Any,
    options: dict[str, float],
    prompt: list[int],
    seed: int,
    size: int,
    new: int,
    threshold: float,
    early: bool,
    mask_bonus: float,
) -> None:
    logits = plain.random_logits(seed, sharpness=2.0, mask_bonus=mask_bonus)
    expected = plain.dinfer(prompt, logits, size=size, new=new, early=early, threshold=threshold, **options)
    low = {"low_threshold": options["low"]} if "low" in options else {}
    found = plain.drive(
        kind(threshold=threshold, early_stop=early, max_forwards=100, **low), prompt, logits, size=size, new=new
    )
    assert found.outcome is not None
    assert (found.outcome.finish_reason == "stuck") == (expected is None)
    if expected is not None:
        assert (found.tokens, found.forwards, found.trace) == (expected.tokens, expected.forwards, expected.trace)


def test_positions_within_a_hair_of_the_best_are_taken_with_it() -> None:
    table = {0: [0.0] * 9, 1: [0.0] * 9, 2: [0.0] * 9}
    table[0][1], table[1][2], table[2][3] = 1.0, 1.0 + 1e-6, 1.1
    found = plain.drive(Threshold(threshold=0.9), [], plain.fixed_logits(table), size=3, new=3)
    assert found.trace == [([2], []), ([0, 1], [])]


def test_the_best_of_a_run_waits_below_the_low_threshold() -> None:
    # Probabilities of about 0.87, 0.98 and 0.25: the middle one parts the masks into two runs.
    table = {0: [4.0] + [0.0] * 8, 1: [6.0] + [0.0] * 8, 2: [1.0] + [0.0] * 8}
    found = plain.drive(Hierarchy(low_threshold=0.4), [], plain.fixed_logits(table), size=3, new=3)
    assert found.trace == [([1], []), ([0], []), ([2], [])]


def test_a_block_of_masks_alone_is_given_up_at_once_and_said() -> None:
    table = {i: [0.0] * plain.MASK + [5.0] for i in range(3)}
    found = plain.drive(Threshold(), [], plain.fixed_logits(table), size=3, new=3)
    assert found.outcome is not None
    assert (found.outcome.finish_reason, found.forwards, found.tokens) == ("stuck", 1, [plain.MASK] * 3)


def test_a_growing_credit_is_waited_for() -> None:
    # The mask wins by little, the credit of the others cannot grow; of two tokens the credited one stays.
    table = {i: [0.0] * plain.MASK + [5.0] for i in range(3)}
    found = plain.drive(Credit(max_forwards=7), [], plain.fixed_logits(table), size=3, new=3)
    assert found.outcome is not None
    assert (found.outcome.finish_reason, found.forwards) == ("stuck", 7)


def test_names_and_settings() -> None:
    assert type(policy("dinfer")) is Threshold
    assert type(policy("dinfer", use_credit=True)) is Credit
    assert type(policy("dinfer", parallel_decoding="hierarchy", low_threshold=0.2)) is Hierarchy
