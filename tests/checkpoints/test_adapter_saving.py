"""The folder of an adapter: its files, its card."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import difflm
from difflm.checkpoints.adapter_saving import save_adapter
from difflm.checkpoints.convert import convert
from difflm.checkpoints.fields import read_json, write_json
from difflm.checkpoints.loading import load_model
from difflm.checkpoints.merge import average_checkpoints, mean_parameters
from difflm.checkpoints.saving import save_model
from difflm.errors import CheckpointError
from difflm.scoring import logits
from tests.checkpoints.adapters import BASES, adapted, base_folder, same_adapter
from tests.checkpoints.tiny import tokens
from tests.standins import write_parent


def test_the_folder_of_an_adapter_and_its_card(tmp_path: Path) -> None:
    parent = write_parent(tmp_path / "parent")
    (parent / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    convert(parent, tmp_path / "base", block_size=8)
    save_adapter(adapted(tmp_path / "base", token_ids=(257,)), tmp_path / "adapter")
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "difflm.json", "README.md"}
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"---\nbase_model: {tmp_path / 'base'}\nlibrary_name: peft\nlicense: apache-2.0\ntags:")
    assert "do not decode this model left to right" in card
    assert read_json(tmp_path / "adapter" / "adapter_config.json")["base_model_name_or_path"] == str(tmp_path / "base")


def test_a_model_without_adapter_and_a_folder_in_use(tmp_path: Path) -> None:
    loaded = load_model(write_parent(tmp_path / "parent"))
    with pytest.raises(CheckpointError, match="carries no adapter; write it with save_model"):
        save_adapter(loaded, tmp_path / "x")
    with pytest.raises(CheckpointError, match="output folder is not empty"):
        save_adapter(adapted(tmp_path / "parent"), tmp_path / "parent")
    assert "left to right" not in _card(tmp_path)


@pytest.mark.parametrize("name", BASES)
def test_the_gate_is_saved_loaded_and_never_lost(name: str, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", name)
    gated = adapted(base, gate="noisy")
    save_adapter(gated, tmp_path / "adapter")
    assert read_json(tmp_path / "adapter" / "adapter_config.json")["difflm_adapter_rows"] == "noisy"
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "for masked rows alone" in card
    assert "difflm merge" not in card
    again = load_model(tmp_path / "adapter")
    assert again.adapter is not None
    assert again.adapter.gate == again.model.adapter_gate == "noisy"
    assert same_adapter(gated, again)
    token_BL = tokens(again.config.model.vocab_size)
    off, on = (logits(each, token_BL, attention="causal") for each in (load_model(base), again))
    assert torch.equal(off, on)
    noisy = torch.cat([token_BL, token_BL], dim=1)
    without, with_it = (
        logits(again, noisy, attention="noisy_clean", block_size=4, adapter=each) for each in (False, True)
    )
    assert not torch.allclose(without, with_it)
    with pytest.raises(CheckpointError, match="its adapter acts on noisy rows alone"):
        save_model(again, tmp_path / "merged")
    with pytest.raises(CheckpointError, match=r"its adapter acts on noisy rows alone .*for left-to-right use take"):
        average_checkpoints([tmp_path / "adapter"], tmp_path / "merged")
    with pytest.raises(CheckpointError, match="its adapter acts on noisy rows alone"):
        mean_parameters([tmp_path / "adapter"])
    with pytest.raises(CheckpointError, match="its adapter acts on noisy rows alone"):
        difflm.export(tmp_path / "adapter", tmp_path / "exported")
    assert not (tmp_path / "merged").exists()
    assert not (tmp_path / "exported").exists()


def test_a_gate_that_is_none(tmp_path: Path) -> None:
    save_adapter(adapted(base_folder(tmp_path / "base", "llama")), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    raw = read_json(path)
    assert "difflm_adapter_rows" not in raw
    write_json(path, raw | {"difflm_adapter_rows": "clean"})
    with pytest.raises(CheckpointError, match=r"difflm_adapter_rows .*one of all, noisy"):
        load_model(tmp_path / "adapter")


def _card(folder: Path) -> str:
    save_adapter(adapted(folder / "parent"), folder / "ar")
    return (folder / "ar" / "README.md").read_text(encoding="utf-8")
