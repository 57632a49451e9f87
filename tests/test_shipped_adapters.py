"""The adapters that come with the project: small, gated, and without a path of the machine that made them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from difflm.checkpoints.adapter_config import read_adapter_config
from difflm.checkpoints.fields import read_json

ADAPTERS = sorted(path for path in (Path(__file__).parents[1] / "adapters").iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", ADAPTERS, ids=lambda path: path.name)
def test_it_is_small_and_says_what_it_belongs_to(folder: Path) -> None:
    told = read_adapter_config(folder)
    assert told.gate == "noisy"
    assert told.base is not None
    assert not Path(told.base).is_absolute()
    assert re.fullmatch(r"[0-9a-f]{64}", read_json(folder / "difflm.json")["base_sha256"])
    assert sum(file.stat().st_size for file in folder.iterdir()) < 20e6
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"adapters/{folder.name}" in card
    assert told.base in card
