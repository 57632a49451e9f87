"""Rules inside the sections about what a run measures and survives."""

from __future__ import annotations

import pytest

from difflm.errors import ConfigError
from difflm.training.config_run import SamplesConfig


def test_samples_need_a_prompt() -> None:
    SamplesConfig(every_tokens=10, prompts=("Once",))
    with pytest.raises(ConfigError, match=r"samples.prompts: empty, and samples are due every 10 tokens"):
        SamplesConfig(every_tokens=10)
