"""A tiny converted model and its parent on disk, and a task that they can partly do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import difflm
from difflm.checkpoints.convert import convert
from tests.standins import write_parent


def write_model(folder: Path) -> Path:
    """Write parent, model and items.jsonl into a folder; every other answer is the model's own at threshold 1."""
    convert(write_parent(folder / "parent"), folder / "model", block_size=4)
    loaded = difflm.load_model(folder / "model")
    prompts = [f"{number} and" for number in range(6)]
    params = difflm.SamplingParams(max_new_tokens=6, policy=difflm.policy("native", threshold=1.0, block_length=4))
    answers = [each.text or "" for each in difflm.generate(loaded, prompts, params)]
    rows = [
        {"prompt": prompt, "answer": answer if number % 2 else "no"}
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `write_model`."""
    return write_model(tmp_path_factory.mktemp("evaluation"))
