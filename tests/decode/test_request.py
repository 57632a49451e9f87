"""Sampling parameters: ranges, defaults and where they come from; the arithmetic of completions."""

from __future__ import annotations

import math
from typing import Any

import pytest

from difflm.decode.drawing import Draw
from difflm.decode.policies.native import Native
from difflm.decode.request import Request, SamplingParams
from difflm.errors import RequestError


def test_defaults() -> None:
    params = SamplingParams()
    assert (params.temperature, params.min_accept, params.decoding, params.ignore_eos) == (0.0, 1, None, False)
    assert params.resolved_threshold({}) == 0.95
    assert params.resolved_block_size({}, None) == 32


def test_block_size_and_threshold_come_from_the_request_then_generation_config_then_config() -> None:
    generation = {"block_size": 8, "threshold": 0.8}
    asked = SamplingParams(block_size=4, threshold=0.5)
    assert asked.resolved_block_size(generation, 16) == 4
    assert asked.resolved_threshold(generation) == 0.5
    assert SamplingParams().resolved_block_size(generation, 16) == 8
    assert SamplingParams().resolved_threshold(generation) == 0.8
    assert SamplingParams().resolved_block_size({"block_size": None}, 16) == 16


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 2.0),
        ("max_new_tokens", True),
        ("block_size", 0),
        ("block_size", -4),
        ("block_size", "32"),
        ("threshold", -0.1),
        ("threshold", math.nan),
        ("threshold", math.inf),
        ("threshold", "0.9"),
        ("min_accept", 0),
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("seed", -1),
        ("seed", 2**63),
        ("ignore_eos", "yes"),
        ("decoding", "ar"),
    ],
)
def test_bad_values_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=rf"^{field}: .*{value!r}") as refused:
        SamplingParams(**{field: value})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("generation", [{"block_size": 0}, {"block_size": "8"}])
def test_a_bad_block_size_in_generation_config_is_refused_by_file(generation: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"generation_config\.json: block_size"):
        SamplingParams().resolved_block_size(generation, None)


def test_a_bad_threshold_in_generation_config_is_refused_by_file() -> None:
    with pytest.raises(RequestError, match=r"generation_config\.json: threshold"):
        SamplingParams().resolved_threshold({"threshold": "high"})


def test_thresholds_of_one_and_more_are_legal() -> None:
    assert SamplingParams(threshold=1).resolved_threshold({}) == 1.0
    assert SamplingParams(threshold=1.5).resolved_threshold({}) == 1.5


@pytest.mark.parametrize(
    ("length", "new", "size", "capacity"), [(5, 3, 4, 8), (5, 4, 4, 12), (0, 1, 32, 32), (7, 1, 1, 8)]
)
def test_capacity_is_whole_blocks(length: int, new: int, size: int, capacity: int) -> None:
    request = Request(
        id=0,
        prompt=(1,) * length,
        max_new_tokens=new,
        block_size=size,
        policy=Native(),
        rule=Draw(),
        seed=0,
        eos_ids=frozenset(),
        mask_id=9,
        logit_shift=False,
        clean_causal=False,
        noisy_causal=False,
        noisy_shift=False,
    )
    assert request.limit == length + new
    assert request.capacity == capacity
