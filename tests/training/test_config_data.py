"""Rules inside the section `data`."""

from __future__ import annotations

from pathlib import Path

import pytest

from difflm.errors import ConfigError
from difflm.training.config_data import DataConfig


def test_two_sources_of_validation_documents_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.validation_fraction"):
        DataConfig(paths=(Path("d"),), validation_paths=(Path("v"),), validation_fraction=0.1)


def test_weights_belong_to_paths() -> None:
    DataConfig(paths=(Path("a"), Path("b")), weights=(1.0, 3.0))
    with pytest.raises(ConfigError, match=r"data.weights: 1 weights for 2 paths; give one for each path, or none"):
        DataConfig(paths=(Path("a"), Path("b")), weights=(1.0,))
