"""Rules inside the sections `optimizer` and `lr_schedule`."""

from __future__ import annotations

import pytest

from difflm.errors import ConfigError
from difflm.training.config_optimizer import LearningRateConfig, OptimizerConfig


def test_two_lengths_of_the_warmup_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"lr_schedule.warmup_fraction"):
        LearningRateConfig(warmup_tokens=5, warmup_fraction=0.1)


def test_warmup_and_decay_do_not_overlap() -> None:
    with pytest.raises(ConfigError, match=r"decay_fraction"):
        LearningRateConfig(kind="wsd", warmup_fraction=0.3, decay_fraction=0.8)


def test_a_learning_rate_of_muon_needs_muon() -> None:
    OptimizerConfig(kind="muon", muon_learning_rate=0.02)
    with pytest.raises(ConfigError, match=r"optimizer.muon_learning_rate: 0.02 has no meaning for kind 'adamw'"):
        OptimizerConfig(muon_learning_rate=0.02)
