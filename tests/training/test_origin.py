"""What a run started from is recorded, and what changed since is named: model, tokenizer, rows."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from difflm.errors import CheckpointError
from difflm.training.config import TrainConfig
from difflm.training.origin import model_hash, tokenizer_hash
from difflm.training.trainer import Trainer
from tests.standins import write_texts
from tests.training.runs import config_of


@pytest.fixture(scope="module")
def begun(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Return the configuration of a run with one checkpoint, with files of its own."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copytree(files["paper"], folder / "model")
    write_texts(folder / "texts.jsonl")
    held = [json.dumps({"text": f"held out {number}, and light was."}) for number in range(3)]
    (folder / "held.jsonl").write_text("\n".join(held) + "\n")
    config = config_of(
        {"paper": folder / "model", "texts": folder / "texts.jsonl"},
        folder / "run",
        data={
            "paths": [str(folder / "texts.jsonl")],
            "validation_paths": [str(folder / "held.jsonl")],
            "row_length": 64,
        },
    )
    trainer = Trainer(config)
    trainer.train_step()
    trainer._save()
    trainer.close()
    return config


def copied(begun: TrainConfig, folder: Path) -> TrainConfig:
    """Return the same run with all of its files elsewhere."""
    shutil.copytree(begun.output.parent, folder)
    data = dataclasses.replace(begun.data, paths=(folder / "texts.jsonl",), validation_paths=(folder / "held.jsonl",))
    return dataclasses.replace(begun, model=folder / "model", output=folder / "run", data=data)


def test_files_that_moved_are_the_same_files(begun: TrainConfig, tmp_path: Path) -> None:
    trainer = Trainer(copied(begun, tmp_path / "moved"), resume="auto")
    assert trainer.state.step == 1
    trainer.close()


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _reword(path: Path) -> None:
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(tree, indent=7))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model/model.safetensors", _flip, r"train\.model: config\.json or weights of .*model are not those"),
        ("model/config.json", _reword, r"train\.model: config\.json or weights of .*model are not those"),
        ("model/tokenizer.json", _reword, r"train\.model: the tokenizer files of .*model are not those"),
        (
            "texts.jsonl",
            lambda path: write_texts(path, documents=41),
            r"train\.data\.paths: the training rows are not those",
        ),
        (
            "held.jsonl",
            lambda path: path.write_text(path.read_text() + '{"text": "one more"}\n'),
            r"train\.data\.validation_paths: the validation rows are not those",
        ),
    ],
)
def test_what_changed_is_named(
    begun: TrainConfig, tmp_path: Path, file: str, change: Callable[[Path], object], message: str
) -> None:
    config = copied(begun, tmp_path / "changed")
    change(tmp_path / "changed" / file)
    with pytest.raises(CheckpointError, match=message) as caught:
        Trainer(config, resume="auto")
    assert "that the run started from" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hashes_are_of_content_and_names_not_of_paths(files: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(files["paper"], tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("another card")
    assert model_hash(tmp_path / "copy") == model_hash(files["paper"])
    assert tokenizer_hash(tmp_path / "copy") == tokenizer_hash(files["paper"])
    assert model_hash(files["shift"]) != model_hash(files["paper"])
