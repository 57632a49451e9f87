"""The rules that join several fields, and what the tree derives from its fields."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from difflm.errors import ConfigError
from difflm.training import config as module
from difflm.training.config import (
    BlockDiffusionConfig,
    DataConfig,
    EmbeddingNoiseConfig,
    LearningRateConfig,
    NextTokenConfig,
    OptimizerConfig,
    StageConfig,
    TrainConfig,
)

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
    config = run((*stages, StageConfig(tokens=30, block_size=32)))
    assert config.block_sizes == (1, 64, 32)
    assert config.total_tokens == 60
    assert config.fill_multiple == 32
    assert dataclasses.replace(config, data=DataConfig(paths=(Path("d"),), fill="none")).fill_multiple is None


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


def test_forced_masks_need_the_uniform_weighting() -> None:
    BlockDiffusionConfig(noise="bernoulli", weighting="uniform", min_masks=1)
    for noise, weighting in (("bernoulli", "elbo"), ("exact_count", "uniform")):
        with pytest.raises(ConfigError, match=r"objective.min_masks: 1 needs noise: bernoulli and weighting: uniform"):
            BlockDiffusionConfig(noise=noise, weighting=weighting, min_masks=1)  # pyright: ignore[reportArgumentType]


def test_band_and_schedule_belong_to_bernoulli() -> None:
    BlockDiffusionConfig(noise="bernoulli", bandwidth=(0.3, 0.8), schedule="cosine")
    with pytest.raises(ConfigError, match=r"objective.bandwidth: \[0.3, 0.8\] has no meaning for noise 'exact_count'"):
        BlockDiffusionConfig(bandwidth=(0.3, 0.8))
    with pytest.raises(ConfigError, match=r"objective.schedule: cosine has no meaning"):
        BlockDiffusionConfig(schedule="cosine")


@pytest.mark.parametrize("band", [(0.5, 0.5), (0.8, 0.3)])
def test_empty_band_is_refused(band: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"objective.bandwidth: .* is empty"):
        BlockDiffusionConfig(noise="bernoulli", bandwidth=band)


def test_two_sources_of_one_fact_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.validation_fraction"):
        DataConfig(paths=(Path("d"),), validation_paths=(Path("v"),), validation_fraction=0.1)
    with pytest.raises(ConfigError, match=r"lr_schedule.warmup_fraction"):
        LearningRateConfig(warmup_tokens=5, warmup_fraction=0.1)


def test_warmup_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"warmup_tokens: 11 is more than the run's 10 tokens"):
        run(lr_schedule=LearningRateConfig(warmup_tokens=11))
    with pytest.raises(ConfigError, match=r"decay_fraction"):
        LearningRateConfig(kind="wsd", warmup_fraction=0.3, decay_fraction=0.8)


def test_the_objective_does_what_its_fields_say() -> None:
    from difflm.diffusion.noise import Bernoulli, CosineSchedule, ExactCount
    from difflm.diffusion.objectives import BlockDiffusion, NextToken
    from difflm.training.trainer import objective_of
    from difflm.types import Parametrisation

    shifted = Parametrisation(logit_shift=True, clean_attention="causal")
    assert objective_of(run(), shifted) == BlockDiffusion(block_size=None, noise=ExactCount(), parametrisation=shifted)
    chosen = BlockDiffusionConfig(
        noise="bernoulli",
        weighting="uniform",
        time_per="sequence",
        schedule="cosine",
        bandwidth=(0.2, 0.7),
        complementary=True,
        ar_weight=0.5,
        min_masks=1,
        block_origin="row",
    )
    assert objective_of(run(objective=chosen), shifted) == BlockDiffusion(
        block_size=None,
        noise=Bernoulli(schedule=CosineSchedule(), bandwidth=(0.2, 0.7), min_masks=1),
        weighting="uniform",
        time_per="sequence",
        complementary=True,
        ar_weight=0.5,
        block_origin="row",
        parametrisation=shifted,
    )
    control = run((StageConfig(tokens=10),), objective=NextTokenConfig())
    assert objective_of(control, shifted) == NextToken()


def test_every_field_is_read_by_the_training_code() -> None:
    folder = Path(module.__file__).parent
    code = "".join(path.read_text() for path in folder.glob("*.py") if not path.name.startswith("config"))
    sections = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
    derived = {"kind", "stages", "fill"}  # read through the tree's own properties
    names = {each.name for section in sections for each in dataclasses.fields(section)} - derived
    assert [name for name in sorted(names) if not re.search(rf"\.{name}\b", code)] == []


def test_every_field_is_documented_with_its_default() -> None:
    sections = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
    assert OptimizerConfig in sections
    for section in sections:
        entries = re.findall(r"^        (\w+): (.*?)(?=^        \w+: |\Z)", section.__doc__ or "", re.M | re.S)
        assert [name for name, _ in entries] == [each.name for each in dataclasses.fields(section)], section
        for each, (name, text) in zip(dataclasses.fields(section), entries, strict=True):
            required = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
            plain = each.default is not dataclasses.MISSING and name != "kind"
            if required:
                assert "No default." in text, f"{section.__name__}.{name}"
            elif plain and section.__name__ != "StageConfig":
                assert "Default " in text, f"{section.__name__}.{name}"
