"""The compared systems: what they are loaded as, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from difflm.bench.systems import (
    CONVERTED,
    PARENT_ENGINE,
    PARENT_TRANSFORMERS,
    Builder,
    EngineSystem,
    TransformersSystem,
)
from difflm.decode.request import SamplingParams
from difflm.errors import RequestError


def builder_of(models: tuple[Path, Path]) -> Builder:
    return Builder(*models, SamplingParams(max_new_tokens=4))


def test_systems_load_the_right_model_at_the_right_dtype(models: tuple[Path, Path]) -> None:
    builder = builder_of(models)
    converted = builder.build(CONVERTED, "bfloat16")
    assert isinstance(converted, EngineSystem)
    assert converted.engine.loaded.path == models[0]
    assert converted.engine.loaded.model.embedding.weight.dtype == torch.bfloat16
    assert converted.params.decoding == "block"
    parent = builder.build(PARENT_ENGINE, "float32")
    assert isinstance(parent, EngineSystem)
    assert parent.engine.loaded.path == models[1]
    assert parent.params.decoding == "next_token"
    other = builder.build(PARENT_TRANSFORMERS, "bfloat16")
    assert isinstance(other, TransformersSystem)
    assert other.generate.dtype == torch.bfloat16


def test_prompts_become_ids_once_for_all_systems(models: tuple[Path, Path]) -> None:
    ids = builder_of(models).check(["ab", [5, 6]])
    assert [len(each) for each in ids] == [2, 2]
    assert ids[1] == [5, 6]


def test_a_prompt_that_the_parent_cannot_take_is_refused(models: tuple[Path, Path]) -> None:
    # The converted model has one row more than its parent; the id of that row is its MASK.
    with pytest.raises(RequestError, match="MASK"):
        builder_of(models).check([[257]])
    # Without a token there is nothing to predict the next one from.
    with pytest.raises(RequestError, match="empty"):
        builder_of(models).check([[]])
