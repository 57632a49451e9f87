"""Reads the conformance data, and lays its two checkpoints out as folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent


def cases(name: str) -> dict[str, Any]:
    """Return a JSON file of the data."""
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def tensors(name: str) -> dict[str, Any]:
    """Return a tensor file of the data."""
    return load_file(HERE / f"{name}.safetensors")


def checkpoint(name: str, folder: Path) -> Path:
    """Write the checkpoint "llada2" or "bailing" (one more layer, for multi-token prediction) and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(HERE / f"{name}.config.json", folder / "config.json")
    more = tensors("mtp") if name == "bailing" else {}
    save_file({**tensors("weights"), **more}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
