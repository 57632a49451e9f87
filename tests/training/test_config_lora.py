"""Section lora: off by default, on with dotted overrides, and what does not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from difflm.errors import ConfigError
from difflm.training.config_io import config_from_tree, config_to_tree, override
from difflm.training.config_lora import LoRAConfig
from tests.training.runs import config_of


def test_off_by_default_and_on_with_an_override(files: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(files, tmp_path / "run")
    assert config.lora is None
    tree = config_to_tree(config)
    assert config_from_tree({name: value for name, value in tree.items() if name != "lora"}) == config
    assert config_from_tree(tree | {"lora": {}}).lora == LoRAConfig()
    given = config_from_tree(override(tree, ["lora.rank=4", "lora.targets=[experts]", "lora.mask_row=false"]))
    assert given.lora == LoRAConfig(rank=4, targets=("experts",), mask_row=False)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"rank": 0}, "train.lora.rank: 0"),
        ({"alpha": 0.0}, "train.lora.alpha: 0"),
        ({"targets": []}, "train.lora.targets: []"),
        ({"dropout": 0.1}, "train.lora.dropout"),
    ],
)
def test_values_that_cannot_be(files: dict[str, Path], tmp_path: Path, section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(files, tmp_path / "run", lora=section)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("objective", "rows"),
    [({"kind": "drafting"}, "all"), ({"kind": "block_diffusion"}, "noisy")],
)
def test_a_head_for_drafts_that_nobody_makes(
    files: dict[str, Path], tmp_path: Path, objective: dict[str, Any], rows: str
) -> None:
    section = {"draft_head": 8, "adapter_rows": rows}
    with pytest.raises(
        ConfigError, match=r"train\.lora\.draft_head: 8, but there are no drafts to correct; set it to 0"
    ):
        config_of(files, tmp_path / "run", lora=section, objective=objective)


def test_biases_of_experts_are_the_base_s(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.router\.bias_update_rate: 0\.001 changes the base"):
        config_of(files, tmp_path / "run", lora={}, router={"bias_update_rate": 1e-3})
