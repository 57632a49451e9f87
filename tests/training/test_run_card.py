"""The section on training says what was run and what was measured."""

from __future__ import annotations

from pathlib import Path

from difflm.training.run_card import training_section
from tests.training.runs import config_of


def test_the_section_names_data_settings_and_figures(tmp_path: Path) -> None:
    files = {"paper": tmp_path / "m", "texts": tmp_path / "a|b.jsonl"}
    config = config_of(files, tmp_path / "run", recipe="mine")
    text = training_section(config, tokens=120, perplexity={"4": 12.34567}, ar_perplexity=9.0)
    assert "| recipe | `mine` |" in text
    assert "a\\|b.jsonl" in text
    assert "| tokens | `120 of 600` |" in text
    assert '"kind": "block_diffusion"' in text
    assert "| validation perplexity, block 4 | `12.35` |" in text
    assert "| validation perplexity, next token | `9` |" in text
    assert "next token" not in training_section(config, tokens=0, perplexity={}, ar_perplexity=None)
