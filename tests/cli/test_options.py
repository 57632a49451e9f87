"""Options that commands share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from difflm.cli.options import open_model
from difflm.errors import ConfigError
from tests.standins import write_parent


def test_threads_and_device_are_honoured(tmp_path: Path) -> None:
    parent = write_parent(tmp_path / "parent")
    before = torch.get_num_threads()
    try:
        loaded = open_model(parent, device="cpu", dtype="bfloat16", threads=before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert loaded.model.embedding.weight.dtype == torch.bfloat16
    with pytest.raises(ConfigError, match=r"--device: 'abacus' cannot be used here"):
        open_model(parent, device="abacus", dtype="float32", threads=None)
