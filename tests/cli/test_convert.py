"""`difflm convert`: every option reaches the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from difflm.checkpoints.loading import load_model
from difflm.cli.main import run
from tests.standins import write_parent


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parent(tmp_path_factory.mktemp("convert") / "parent")


def test_without_options_the_checkpoint_is_the_papers(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", str(parent), str(tmp_path / "out")]) == 0
    config = load_model(tmp_path / "out").config
    assert (config.block_size, config.mask_token_id) == (32, 257)
    assert not config.parametrisation.logit_shift
    assert config.parametrisation.clean_attention == "block"
    assert config.parametrisation.noisy_attention == "bidirectional"
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: llama, mask token <|mask|> id 257 (new embedding row)\n"


def test_every_option_is_recorded(parent: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--block-size", "8", "--logit-shift", "--clean-attention", "causal", "--noisy-attention", "causal"]
    words += ["--dtype", "bfloat16", "--licence", "MIT", "--recipe", "laptop-wsd"]
    assert run(["convert", str(parent), str(out), *words]) == 0
    raw = json.loads((out / "config.json").read_text())
    assert (raw["block_size"], raw["logit_shift"]) == (8, True)
    assert (raw["clean_attention"], raw["noisy_attention"]) == ("causal", "causal")
    assert (raw["difflm"]["license"], raw["difflm"]["recipe"]) == ("MIT", "laptop-wsd")
    header = (out / "model.safetensors").read_bytes()[:200]
    assert b'"BF16"' in header
