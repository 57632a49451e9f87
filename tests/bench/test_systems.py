"""The compared systems: what they are loaded as, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from difflm.bench.systems import (
    CONVERTED,
    CONVERTED_AR,
    PARENT_ENGINE,
    PARENT_TRANSFORMERS,
    SYSTEMS,
    VERIFIED,
    Builder,
    EngineSystem,
    TransformersSystem,
    opened,
    systems_of,
)
from difflm.checkpoints.loading import load_model
from difflm.decode.policies.named import policy
from difflm.decode.request import SamplingParams
from difflm.errors import RequestError
from tests.drafters import drafters

__all__ = ["drafters"]


def builder_of(models: tuple[Path, Path]) -> Builder:
    return Builder(*models, SamplingParams(max_new_tokens=4))


def test_systems_load_the_right_model_at_the_right_dtype(models: tuple[Path, Path]) -> None:
    builder, kept = builder_of(models), {}
    converted = builder.build(CONVERTED, "bfloat16", {})
    assert isinstance(converted, EngineSystem)
    assert converted.engine.loaded.path == models[0]
    assert converted.engine.loaded.model.embedding.weight.dtype == torch.bfloat16
    assert converted.params.decoding == "block"
    parent = builder.build(PARENT_ENGINE, "float32", kept)
    assert isinstance(parent, EngineSystem)
    assert parent.engine.loaded.path == models[1]
    assert parent.params.decoding == "next_token"
    again = builder.build(PARENT_ENGINE, "float32", kept)
    assert isinstance(again, EngineSystem)
    assert again.engine.loaded is parent.engine.loaded, "systems of one file and dtype share its weights"
    other = builder.build(PARENT_TRANSFORMERS, "bfloat16", kept)
    assert isinstance(other, TransformersSystem)
    assert other.generate.dtype == torch.bfloat16


def test_prompts_become_ids_once_for_all_systems(models: tuple[Path, Path]) -> None:
    builder, ids = opened(*models, ["ab", [5, 6]], SamplingParams(max_new_tokens=4))
    assert builder.systems == SYSTEMS
    assert [len(each) for each in ids] == [2, 2]
    assert ids[1] == [5, 6]


def test_a_prompt_that_the_parent_cannot_take_is_refused(models: tuple[Path, Path]) -> None:
    # The converted model has one row more than its parent; the id of that row is its MASK.
    with pytest.raises(RequestError, match="MASK"):
        opened(*models, [[257]], SamplingParams(max_new_tokens=4))
    # Without a token there is nothing to predict the next one from.
    with pytest.raises(RequestError, match="empty"):
        opened(*models, [[]], SamplingParams(max_new_tokens=4))


def test_what_takes_part_is_what_the_model_was_made_for(drafters: Path, models: tuple[Path, Path]) -> None:
    plain, blocks, verified = SamplingParams(), SamplingParams(decoding="block"), SamplingParams(decoding="verified")
    named = SamplingParams(policy=policy("verified", window=4))
    drafter, base = load_model(drafters / "drafter"), load_model(drafters / "base")
    parents = (PARENT_ENGINE, PARENT_TRANSFORMERS)
    assert systems_of(load_model(models[0]), plain) == SYSTEMS
    assert systems_of(drafter, plain) == systems_of(drafter, named) == (VERIFIED, *parents)
    assert systems_of(base, plain) == (CONVERTED, VERIFIED, CONVERTED_AR, *parents)
    assert systems_of(base, blocks) == (CONVERTED, *parents)
    assert systems_of(base, verified) == systems_of(base, named) == (VERIFIED, CONVERTED_AR, *parents)
    hf = SamplingParams(policy=policy("hf21"))
    assert systems_of(base, hf) == (CONVERTED, *parents)


def test_ar_systems_draw_as_verified_drafts_do(drafters: Path) -> None:
    base, parent = drafters / "base", drafters / "parent"
    params = SamplingParams(max_new_tokens=4, temperature=0.5, threshold=0.9, editing_threshold=0.5, seed=3)
    builder, _ = opened(base, parent, ["a"], params)
    assert builder.params_of(CONVERTED) == replace(params, decoding="block")
    assert builder.params_of(VERIFIED) == replace(params, decoding="verified", editing_threshold=None)
    left = replace(params, decoding="next_token", editing_threshold=None)
    assert builder.params_of(PARENT_ENGINE) == builder.params_of(CONVERTED_AR) == left
    assert Builder(base, parent, params).params_of(PARENT_ENGINE) == replace(left, temperature=0.0)
    made = policy("verified", window=4, temperature=0.5, top_k=3, logit_bias={5: 1.0}, min_tokens=2)
    builder, _ = opened(base, parent, ["a"], SamplingParams(max_new_tokens=4, policy=made))
    assert builder.params_of(VERIFIED).policy == made
    assert builder.params_of(PARENT_ENGINE) == SamplingParams(
        max_new_tokens=4, decoding="next_token", temperature=0.5, top_k=3, logit_bias={5: 1.0}, min_tokens=2
    )
    hf = SamplingParams(max_new_tokens=4, policy=policy("hf21"))
    assert Builder(base, parent, hf).params_of(PARENT_ENGINE) == SamplingParams(max_new_tokens=4, decoding="next_token")
