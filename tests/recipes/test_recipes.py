"""Every shipped recipe is a valid configuration and is what its name says."""

from __future__ import annotations

from pathlib import Path

import pytest

from difflm.recipes import recipe_names, recipe_path
from difflm.training.config import BlockDiffusionConfig, NextTokenConfig, TrainConfig
from difflm.training.config_io import config_from_tree, dump_config, override, parse_yaml, read_tree


def recipe(name: str) -> TrainConfig:
    path = recipe_path(name)
    assert path is not None
    return config_from_tree(override(read_tree(path), ["model=m", "output=o", "data.paths=[d]"]))


def test_the_shipped_recipes() -> None:
    assert recipe_names() == ["laptop-wsd", "next-token", "paper-wsd", "sft"]
    assert recipe_path("absent") is None
    assert recipe_path("../recipes/sft") is None


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_valid_measured_and_survives_its_dump(name: str) -> None:
    config = recipe(name)
    assert config_from_tree(parse_yaml(dump_config(config), where=name)) == config
    assert config.data.validation_fraction > 0, "merge needs validated checkpoints"
    assert config.checkpoint.every_tokens > 0
    last = config.curriculum[-1].tokens
    assert last >= 2 * config.checkpoint.every_tokens, "the last stage gives merge something to average"


def test_the_papers_ladder() -> None:
    config = recipe("paper-wsd")
    assert [stage.block_size for stage in config.curriculum] == [1, 4, 32, 64, "row", 2048, 1024, 256, 32]
    assert config.block_sizes[4] == config.data.row_length == 4096
    assert config.embedding_noise.sigma > 0
    assert config.embedding_noise.stages == 4, "the noise ends with the warm-up of the block size"
    shares = [sum(stage.tokens for stage in part) for part in (config.curriculum[:4], config.curriculum[4:5])]
    assert [share / config.total_tokens for share in shares] == pytest.approx([0.1, 0.7])
    assert config.objective == BlockDiffusionConfig(), "exact counts, ELBO weights, blocks per document"


def test_the_laptop_ladder_has_the_same_shape() -> None:
    sizes = [stage.block_size for stage in recipe("laptop-wsd").curriculum]
    top = sizes.index("row")
    growing = [size for size in sizes[:top] if isinstance(size, int)]
    falling = [size for size in sizes[top + 1 :] if isinstance(size, int)]
    assert growing == sorted(set(growing)), "grows"
    assert falling == sorted(set(falling), reverse=True), "falls"
    assert growing[0] == 1
    assert len(falling) > 1


def test_fine_tuning_masks_complementary_pairs_of_the_answer() -> None:
    config = recipe("sft")
    assert isinstance(config.objective, BlockDiffusionConfig)
    assert config.objective.complementary
    assert config.objective.weighting == "uniform"
    assert sum(config.objective.bandwidth) == 1.0, "symmetric, so that both views lie in the band"
    assert config.fill_multiple == 32


def test_the_control_has_no_blocks() -> None:
    config = recipe("next-token")
    assert config.objective == NextTokenConfig()
    assert config.block_sizes == (None,)
    assert config.fill_multiple is None


def test_recipes_are_in_the_package() -> None:
    for name in recipe_names():
        path = recipe_path(name)
        assert path is not None
        assert path.parent.name == "recipes"
        assert (path.parent / "__init__.py").is_file()
        assert Path(path).read_text().startswith("# ")
