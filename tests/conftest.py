"""Settings of the whole suite, and the tiny checkpoints that many tests train."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import Phase, settings

from difflm.checkpoints.convert import convert
from tests.standins import write_parent, write_texts

# No deadline: the machines that run this are shared. Mutants need a failing example, not the smallest one.
settings.register_profile("difflm", deadline=None)
settings.register_profile("mutants", deadline=None, phases=[Phase.explicit, Phase.generate])
settings.load_profile("difflm")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a converted tiny checkpoint for each parametrisation, its AR parent, and texts."""
    folder = tmp_path_factory.mktemp("trainer")
    parent = write_parent(folder / "parent")
    convert(parent, folder / "paper", block_size=8)
    convert(parent, folder / "shift", block_size=8, logit_shift=True, clean_attention="causal")
    texts = write_texts(folder / "texts.jsonl")
    return {"parent": parent, "paper": folder / "paper", "shift": folder / "shift", "texts": texts}
