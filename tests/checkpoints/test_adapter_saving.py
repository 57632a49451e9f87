"""The folder of an adapter: its files, its card."""

from __future__ import annotations

from pathlib import Path

import pytest

from difflm.checkpoints.adapter_saving import save_adapter
from difflm.checkpoints.convert import convert
from difflm.checkpoints.fields import read_json
from difflm.checkpoints.loading import load_model
from difflm.errors import CheckpointError
from tests.checkpoints.adapters import adapted
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


def _card(folder: Path) -> str:
    save_adapter(adapted(folder / "parent"), folder / "ar")
    return (folder / "ar" / "README.md").read_text(encoding="utf-8")
