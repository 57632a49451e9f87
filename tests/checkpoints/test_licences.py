"""The base's licence travels along a chain of copies."""

from __future__ import annotations

from pathlib import Path

from difflm.checkpoints.convert import convert
from difflm.checkpoints.export import export
from difflm.checkpoints.loading import load_model
from difflm.checkpoints.merge import average_checkpoints
from difflm.checkpoints.saving import save_model
from tests.checkpoints.tiny import hf_folder


def test_licence_files_field_and_parent_are_in_every_copy(tmp_path: Path) -> None:
    hf_folder(tmp_path / "parent", "qwen3")
    (tmp_path / "parent" / "LICENSE").write_text("All of it.\n")
    (tmp_path / "parent" / "NOTICE.txt").write_text("Some of it.\n")
    (tmp_path / "parent" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    convert(tmp_path / "parent", tmp_path / "converted")
    save_model(load_model(tmp_path / "converted"), tmp_path / "saved")
    average_checkpoints([tmp_path / "converted", tmp_path / "saved"], tmp_path / "merged")
    export(tmp_path / "merged", tmp_path / "exported", format="sdar")
    for name in ("converted", "saved", "merged", "exported"):
        folder = tmp_path / name
        assert (folder / "LICENSE").read_text() == "All of it.\n", name
        assert (folder / "NOTICE.txt").read_text() == "Some of it.\n", name
        card = (folder / "README.md").read_text()
        assert "license: apache-2.0" in card, name
        assert "base_model: parent" in card, name
