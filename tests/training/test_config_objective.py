"""Rules inside the section `objective`."""

from __future__ import annotations

from typing import Any

import pytest

from difflm.errors import ConfigError
from difflm.training.config_objective import BlockDiffusionConfig


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


def test_the_band_follows_from_weighting_and_pairs() -> None:
    def band(**fields: Any) -> tuple[float, float]:
        return BlockDiffusionConfig(**fields).band

    assert band() == (0.0, 1.0)
    assert band(weighting="uniform") == (0.0, 1.0)  # exact counts
    assert band(noise="bernoulli") == (0.0, 1.0)  # the ELBO is that of all rates
    assert band(noise="bernoulli", weighting="uniform") == (0.3, 0.8)
    assert band(noise="bernoulli", weighting="uniform", complementary=True) == (0.2, 0.8)
    assert band(noise="bernoulli", weighting="uniform", bandwidth=(0.0, 1.0)) == (0.0, 1.0)


@pytest.mark.parametrize("band", [(0.5, 0.5), (0.8, 0.3)])
def test_empty_band_is_refused(band: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"objective.bandwidth: .* is empty"):
        BlockDiffusionConfig(noise="bernoulli", bandwidth=band)


def test_the_fall_off_belongs_to_cart() -> None:
    BlockDiffusionConfig(weighting="cart", cart_p=0.3)
    with pytest.raises(ConfigError, match=r"objective.cart_p: 0.3 has no meaning for weighting 'elbo'; set weighting"):
        BlockDiffusionConfig(cart_p=0.3)
