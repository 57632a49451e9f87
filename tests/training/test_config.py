"""The rules that join several fields, and what the tree derives from its fields."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from difflm.errors import ConfigError
from difflm.training import config, config_data, config_objective, config_optimizer, config_run
from difflm.training.config import (
    DataConfig,
    EmbeddingNoiseConfig,
    LearningRateConfig,
    NextTokenConfig,
    OptimizerConfig,
    StageConfig,
    TrainConfig,
)

MODULES = (config, config_data, config_objective, config_optimizer, config_run)
SECTIONS = [
    each
    for module in MODULES
    for each in vars(module).values()
    if isinstance(each, type) and each.__module__ == module.__name__
]

BASE = TrainConfig(
    model=Path("m"),
    output=Path("o"),
    data=DataConfig(paths=(Path("d"),), row_length=64),
    curriculum=(StageConfig(tokens=10, block_size=4),),
)


def run(stages: tuple[StageConfig, ...] = BASE.curriculum, **fields: Any) -> TrainConfig:
    return dataclasses.replace(BASE, curriculum=stages, **fields)


def test_row_length_that_a_stage_does_not_divide_names_both() -> None:
    with pytest.raises(ConfigError) as caught:
        run((StageConfig(tokens=10, block_size=4), StageConfig(tokens=10, block_size=48)))
    message = str(caught.value)
    assert "train.data.row_length: 64" in message
    assert "48" in message
    assert "train.curriculum[1]" in message
    assert "48 or 96" in message


def test_block_longer_than_the_row_is_refused() -> None:
    with pytest.raises(ConfigError, match="64 is not divisible by the block size 128"):
        run((StageConfig(tokens=10, block_size=128),))


def test_whole_row_and_numbers_resolve_to_tokens() -> None:
    stages = (StageConfig(tokens=10, block_size=1), StageConfig(tokens=20, block_size="row"))
    whole = run((*stages, StageConfig(tokens=30, block_size=32)))
    assert whole.block_sizes == (1, 64, 32)
    assert whole.total_tokens == 60
    assert whole.fill_multiple == 32
    assert dataclasses.replace(whole, data=DataConfig(paths=(Path("d"),), fill="none")).fill_multiple is None


def test_embedding_noise_ends_with_its_stages() -> None:
    stages = tuple(StageConfig(tokens=tokens, block_size=4) for tokens in (10, 20, 40))
    assert run(stages, embedding_noise=EmbeddingNoiseConfig(sigma=0.1, stages=2)).embedding_noise_tokens == 30
    with pytest.raises(ConfigError, match=r"embedding_noise.stages: 4 is more than the 3 stages"):
        run(stages, embedding_noise=EmbeddingNoiseConfig(sigma=0.1, stages=4))


def test_next_token_takes_stages_without_block_size_only() -> None:
    assert run((StageConfig(tokens=10),), objective=NextTokenConfig()).block_sizes == (None,)
    with pytest.raises(ConfigError, match=r"curriculum\[0\].block_size: 4 has no meaning"):
        run(objective=NextTokenConfig())
    with pytest.raises(ConfigError, match=r"curriculum\[0\].block_size: missing"):
        run((StageConfig(tokens=10),))


def test_warmup_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"warmup_tokens: 11 is more than the run's 10 tokens"):
        run(lr_schedule=LearningRateConfig(warmup_tokens=11))


def test_every_field_is_read_by_the_training_code() -> None:
    # Also above the training layer: samples need the decoder.
    folder = Path(config.__file__).parents[1]
    files = [each for each in folder.rglob("*.py") if not each.name.startswith("config")]
    code = "".join(path.read_text() for path in files)
    derived = {"kind", "stages", "fill"}  # read through the tree's own properties
    names = {each.name for section in SECTIONS for each in dataclasses.fields(section)} - derived
    assert [name for name in sorted(names) if not re.search(rf"\.{name}\b", code)] == []


def test_every_field_is_documented_with_its_default() -> None:
    assert OptimizerConfig in SECTIONS
    for section in SECTIONS:
        entries = re.findall(r"^        (\w+): (.*?)(?=^        \w+: |\Z)", section.__doc__ or "", re.M | re.S)
        assert [name for name, _ in entries] == [each.name for each in dataclasses.fields(section)], section
        for each, (name, text) in zip(dataclasses.fields(section), entries, strict=True):
            required = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
            plain = each.default is not dataclasses.MISSING and name != "kind"
            if required:
                assert "No default." in text, f"{section.__name__}.{name}"
            elif plain and section.__name__ != "StageConfig":
                assert "Default " in text, f"{section.__name__}.{name}"


@pytest.mark.parametrize(
    ("sizes", "first"), [((8,), 0), ((8, 8), 0), ((1, 4, 8), 2), ((8, 4, 8, 8), 2), ((4, "row", 64), 1)]
)
def test_the_last_part_of_a_run_is_its_last_stages_of_one_block_size(sizes: tuple[Any, ...], first: int) -> None:
    assert run(tuple(StageConfig(tokens=10, block_size=size) for size in sizes)).final_stage == first
