"""Tiny models that draft, on disk: a base with an adapter for mask rows, and full weights that are token-causal."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from difflm.checkpoints.adapter_saving import save_adapter
from difflm.checkpoints.convert import convert
from tests.checkpoints.adapters import adapted
from tests.standins import byte_tokenizer, write_parent

BLOCK = 8


def write_drafters(folder: Path, *, sure: bool = False) -> Path:
    """Write parent, base (token-causal, also a model of its own) and drafter (its adapter) into a folder.

    Args:
        folder: where to.
        sure: every row says the same token, so that every draft is accepted.
    """
    parent = write_parent(folder / "parent")
    if sure:
        weights = load_file(parent / "model.safetensors")
        weights["model.embed_tokens.weight"][:, 0] = 1.0
        weights["model.embed_tokens.weight"][byte_tokenizer().token_to_id("a"), 0] = 4.0
        save_file(weights, parent / "model.safetensors", metadata={"format": "pt"})
    convert(
        parent,
        folder / "base",
        block_size=BLOCK,
        logit_shift=True,
        clean_attention="causal",
        noisy_attention="causal",
    )
    save_adapter(adapted(folder / "base", gate="noisy", token_ids=(), rank=1, alpha=0.1), folder / "drafter")
    return folder


@pytest.fixture(scope="module")
def drafters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `write_drafters`."""
    return write_drafters(tmp_path_factory.mktemp("drafters"))


@pytest.fixture(scope="module")
def sure_drafters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `write_drafters`, every draft accepted."""
    return write_drafters(tmp_path_factory.mktemp("sure"), sure=True)
