"""Section router: defaults that change nothing, and what does not go together."""

from __future__ import annotations

from pathlib import Path

import pytest

from difflm.errors import ConfigError
from difflm.training.config_io import config_from_tree, config_to_tree
from difflm.training.config_router import RouterConfig
from tests.training.runs import config_of


def test_everything_is_off_by_default(files: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(files, tmp_path / "run")
    assert config.router == RouterConfig()
    assert config.router.first_wanted is None
    assert config.learning == config.optimizer
    tree = config_to_tree(config)
    del tree["router"]  # a run recorded before the section existed
    assert config_from_tree(tree) == config


def test_a_frozen_router_adds_its_weight_to_what_is_frozen(files: dict[str, Path], tmp_path: Path) -> None:
    optimizer = {"freeze": ["norm.weight"]}
    config = config_of(files, tmp_path / "run", router={"freeze": True}, optimizer=optimizer)
    assert config.learning.freeze == ("norm.weight", "*.router.weight")
    assert config.optimizer.freeze == ("norm.weight",), "what is recorded is what was asked for"


@pytest.mark.parametrize("name", ["bias_update_rate", "z_loss", "balance_loss"])
def test_a_frozen_router_is_not_balanced(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^train\.router\.freeze: true together with {name} 0\.01.*set one of the"):
        RouterConfig(freeze=True, **{name: 0.01})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["bias_update_rate", "z_loss", "balance_loss"])
def test_rates_and_coefficients_are_not_negative(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^train\.router\.{name}: -0\.1 is not allowed"):
        config_of(files, tmp_path / "run", router={name: -0.1})
