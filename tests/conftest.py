"""Settings of the whole suite, and the tiny checkpoints that many tests train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings

from difflm.checkpoints.convert import convert
from tests.checkpoints.tiny import hf_folder, ling_folder, make_tokenizer
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


@pytest.fixture(scope="session")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a converted tiny LLaDA2 ("paper"), a converted Qwen3-MoE and texts."""
    folder, tokenizer = tmp_path_factory.mktemp("mixtures"), make_tokenizer()
    ids: dict[str, Any] = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    ling_folder(folder / "ling", tokenizer=tokenizer, num_hidden_layers=2, **ids)
    hf_folder(folder / "qwen", "qwen3_moe", tokenizer=tokenizer, vocab_size=len(tokenizer))
    for name in ("ling", "qwen"):
        convert(folder / name, folder / f"{name}-converted", block_size=4)
    return {
        "paper": folder / "ling-converted",
        "qwen": folder / "qwen-converted",
        "texts": write_texts(folder / "texts.jsonl"),
    }
