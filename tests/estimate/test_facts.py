"""What is read of a model: by name, from a folder with nothing but config.json, or refused in one line."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from difflm.errors import ConfigError
from difflm.estimate.facts import available_memory, model_facts
from difflm.recipes import recipe
from difflm.training.config import TrainConfig


def run_of(model: str, name: str = "paper-wsd") -> TrainConfig:
    return recipe(name, model=model, output="run", data="text.jsonl")


def test_an_architecture_has_the_layout_that_the_objective_needs() -> None:
    assert model_facts(run_of("smollm2-135m")).parametrisation.clean_attention == "block"
    assert model_facts(run_of("smollm2-135m", "laptop")).parametrisation.clean_attention == "causal"


def test_facts_of_a_name_and_of_a_folder_without_weights(files: dict[str, Path], tmp_path: Path) -> None:
    assert model_facts(run_of("smollm2-135M")).model.num_layers == 30
    shutil.copy(files["shift"] / "config.json", tmp_path / "config.json")
    found = model_facts(run_of(str(tmp_path)))
    assert found.parametrisation.logit_shift
    assert found.model.hidden_size == 32
    assert 0 < found.mask_id < found.model.vocab_size


def test_unknown_models_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"train.model: 'nothing' is neither a folder nor one of .*smollm2-135m"):
        model_facts(run_of("nothing"))


def test_memory_of_this_machine_is_bytes() -> None:
    found = available_memory()
    assert found is None or found > 50 * 2**20


def test_a_run_with_rope_scaling_has_the_longer_context(files: dict[str, Path]) -> None:
    plain = run_of(str(files["paper"]))
    scaled = replace(plain, rope_scaling={"rope_type": "linear", "factor": 2.0})
    assert model_facts(scaled).model.max_positions == 2 * model_facts(plain).model.max_positions
