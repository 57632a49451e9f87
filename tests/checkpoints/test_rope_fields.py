"""Rope scaling in config.json and at load time: what is silent, what is refused, and how long the context becomes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from difflm.checkpoints.families import model_config
from difflm.checkpoints.rope_fields import hf_rope, longest_context, rope_config, with_rope_scaling
from difflm.errors import CheckpointError
from difflm.models.config import ModelConfig, RopeConfig
from tests.checkpoints.tiny import LLAMA, LLAMA3_SCALING, YARN_SCALING

BASE = LLAMA | {"max_position_embeddings": 128}


def read(**changes: Any) -> ModelConfig:
    return model_config(BASE | changes, "config.json")


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_yarn_in_both_spellings(name: str) -> None:
    legacy = {("type" if key == "rope_type" else key): value for key, value in YARN_SCALING.items()}
    for scaling in (YARN_SCALING, legacy):
        rope = read(rope_theta=5e5, **{name: scaling}).rope
        assert rope == RopeConfig(theta=5e5, kind="yarn", factor=4.0, original_max_positions=32)
    every = {"beta_fast": 16, "beta_slow": 2, "mscale": 1.0, "mscale_all_dim": 0.5, "attention_factor": 1.1}
    rope = read(**{name: YARN_SCALING | every | {"truncate": False}}).rope
    assert rope == RopeConfig(
        kind="yarn",
        factor=4.0,
        original_max_positions=32,
        beta_fast=16.0,
        beta_slow=2.0,
        mscale=1.0,
        mscale_all_dim=0.5,
        attention_factor=1.1,
        truncate=False,
    )


def test_where_yarn_is_silent_transformers_decides() -> None:
    plain = {"rope_type": "yarn", "factor": 4.0}
    assert read(rope_scaling=plain).rope.original_max_positions == 128
    outside = read(rope_scaling=YARN_SCALING, original_max_position_embeddings=16)
    assert outside.rope.original_max_positions == 16, "the field outside of the scaling has priority"
    assert read(rope_scaling=YARN_SCALING | {"factor": None}).rope.factor == 4.0, "null: the ratio of the contexts"
    assert (
        read(rope_scaling=YARN_SCALING | {"beta_fast": None, "mscale": 0}).rope == read(rope_scaling=YARN_SCALING).rope
    )


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "yarn"}, "rope_scaling: factor is missing"),
        (YARN_SCALING | {"factor": 0.5}, "factor is 0.5; expected a number of at least 1"),
        (
            YARN_SCALING | {"beta_fast": 1, "beta_slow": 2},
            "beta_fast is 1; expected a number of at least beta_slow (2)",
        ),
        (YARN_SCALING | {"attention_factor": -1}, "attention_factor is -1"),
        (YARN_SCALING | {"truncate": "no"}, "truncate is 'no'"),
        (YARN_SCALING | {"rope_theta": 1.0}, "rope_theta is 1.0; expected a number above 1"),
        (YARN_SCALING | {"original_max_position_embeddings": 0}, "original_max_position_embeddings is 0"),
    ],
)
def test_bad_yarn_is_named(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(rope_scaling=scaling)
    assert message in str(caught.value)
    assert str(caught.value).startswith("config.json: rope_scaling: ")
    assert "\n" not in str(caught.value)


def test_released_files_add_yarn_without_the_longer_context() -> None:
    """Qwen's own instructions add `rope_scaling` only: the longest context is the original one times the factor."""
    assert read(rope_scaling=YARN_SCALING | {"factor": 16.0}).max_positions == 512
    assert read(rope_scaling=YARN_SCALING).max_positions == 128
    assert read(max_position_embeddings=4096, rope_scaling=YARN_SCALING).max_positions == 4096
    linear = RopeConfig(kind="linear", factor=4.0)
    assert longest_context(128, linear) == 128, "files with linear scaling state the extended context"


@pytest.mark.parametrize(
    ("before", "scaling", "longest"),
    [
        ({}, {"rope_type": "linear", "factor": 2.5}, 320),
        ({}, {"rope_type": "yarn", "factor": 4.0}, 512),
        ({}, {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}, 128),
        ({}, {"rope_type": "default"}, 128),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, {"rope_type": "linear", "factor": 2.0}, 64),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, {"rope_type": "linear", "factor": 4.0}, 128),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, {"rope_type": "default"}, 32),
        ({"rope_scaling": YARN_SCALING}, {"rope_type": "default"}, 32),
        ({"rope_scaling": YARN_SCALING}, {"rope_type": "yarn", "factor": 8.0}, 256),
        ({"rope_scaling": LLAMA3_SCALING}, {"rope_type": "yarn", "factor": 16.0}, 256),
        ({}, LLAMA3_SCALING | {"factor": 32.0}, 512),
        ({}, LLAMA3_SCALING, 128),
    ],
)
def test_scaling_at_load_time_starts_from_the_unscaled_context(
    before: dict[str, Any], scaling: dict[str, Any], longest: int
) -> None:
    changed = with_rope_scaling(read(rope_theta=123.0, **before), scaling)
    assert changed.max_positions == longest
    assert changed.rope.theta == 123.0
    written = BASE | hf_rope(changed.rope) | {"max_position_embeddings": changed.max_positions}
    assert model_config(written, "x") == changed


def test_a_partial_rotation_survives_scaling() -> None:
    config = replace(read(), rope=RopeConfig(partial=0.5))
    scaled = with_rope_scaling(config, {"rope_type": "yarn", "factor": 2.0})
    assert (scaled.rope.partial, scaled.rope.kind) == (0.5, "yarn")
    assert rope_config(BASE | hf_rope(scaled.rope), "x", partial=True) == scaled.rope
    with pytest.raises(CheckpointError, match=r"partial_rotary_factor is 1\.5; expected a share of the head"):
        rope_config({"partial_rotary_factor": 1.5}, "x", partial=True)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({}, "rope_scaling argument: rope_type is missing; expected one of default, linear, llama3, yarn"),
        ({"factor": 2.0}, "rope_scaling argument: rope_type is missing"),
        (
            {"rope_type": "yarn", "factor": 2.0, "beta_fats": 3},
            "rope_scaling argument: beta_fats is not a field; known",
        ),
        ({"rope_type": "linear"}, "factor is missing; expected a positive number"),
        ({"rope_type": "linear", "factor": "2"}, "factor is '2'"),
    ],
)
def test_a_bad_argument_is_named(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        with_rope_scaling(read(), scaling)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
