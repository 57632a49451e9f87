"""Recipes as functions: typed, complete, the same as by name."""

from __future__ import annotations

from pathlib import Path

import pytest

import difflm.recipes
from difflm.errors import ConfigError
from difflm.recipes import Recipe, llada2_mini, recipe, recipe_names, smollm2
from difflm.training.config import TrainConfig


def test_every_recipe_is_a_function_of_its_name() -> None:
    functions = {name: value for name, value in vars(difflm.recipes).items() if isinstance(value, Recipe)}
    assert sorted(each.name for each in functions.values()) == recipe_names()
    assert all(name == each.name.replace("-", "_") for name, each in functions.items())
    assert {*functions} < {*difflm.recipes.__all__}


def test_a_function_returns_the_configuration_with_what_it_was_given() -> None:
    config = llada2_mini(model="m", output=Path("o"), data=["a.jsonl", Path("b")], overrides=["seed=7"])
    assert isinstance(config, TrainConfig)
    assert (config.model, config.output, config.seed) == (Path("m"), Path("o"), 7)
    assert config.data.paths == (Path("a.jsonl"), Path("b"))
    assert config.recipe == "llada2_mini"
    assert config == recipe("llada2-mini", model="m", output="o", data=["a.jsonl", "b"], overrides=["seed=7"])


def test_a_single_path_is_a_list_of_one() -> None:
    assert smollm2(model="m", output="o", data="texts").data.paths == (Path("texts"),)
    assert smollm2(model="m", output="o", data=Path("texts")).data.paths == (Path("texts"),)


def test_tokens_scale_the_run() -> None:
    config = smollm2(model="m", output="o", data="d", tokens=60_000)
    assert config.total_tokens == 60_000
    assert config.checkpoint.every_tokens == 1000


def test_errors_are_those_of_the_command_line() -> None:
    with pytest.raises(ConfigError, match=r"train\.optimizer\.lerning_rate: unknown field; did you mean"):
        llada2_mini(model="m", output="o", data="d", overrides=["optimizer.lerning_rate=1"])
    with pytest.raises(ConfigError, match=r"recipe: 'llada2_mni' is neither .* did you mean 'llada2_mini'\?"):
        recipe("llada2_mni", model="m", output="o", data="d")
