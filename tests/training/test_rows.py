"""Rows of a run: what of the configuration decides them, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.errors import ConfigError, DataError
from difflm.training.config import DataConfig, StageConfig, TrainConfig
from difflm.training.rows import load_rows
from tests.standins import write_parent, write_texts


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(write_parent(tmp_path_factory.mktemp("rows") / "parent"))


def config(path: Path, **data: Any) -> TrainConfig:
    return TrainConfig(
        model=Path("m"),
        output=Path("o"),
        data=DataConfig(**({"paths": (path,), "row_length": 32} | data)),
        curriculum=(StageConfig(tokens=10, block_size=4), StageConfig(tokens=10, block_size=8)),
    )


def pairs(path: Path, *records: tuple[str, str]) -> Path:
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in records))
    return path


def test_answers_are_filled_to_the_last_block_size_with_the_models_eos(loaded: LoadedModel, tmp_path: Path) -> None:
    path = pairs(tmp_path / "pairs.jsonl", ("abc", "xy"))
    batch = load_rows(config(path), loaded)[0].batch([0], [0])
    eos = loaded.config.eos_token_ids[0]
    ids = [*loaded.encode("abc"), *loaded.encode("xy"), eos, eos, eos]
    assert len(ids) == 8
    assert batch.token_BL[0, :8].tolist() == ids
    assert batch.trainable_BL[0].tolist() == [False] * 3 + [True] * 5 + [False] * 24
    bare = load_rows(config(path, fill="none"), loaded)[0].batch([0], [0])
    assert bare.trainable_BL.sum() == 3


def test_documents_longer_than_a_row_are_dropped_or_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    path = pairs(tmp_path / "pairs.jsonl", ("abc", "xy"), ("a" * 40, "b"))
    assert load_rows(config(path), loaded)[0].counts.dropped == 1
    with pytest.raises(DataError, match=r"pairs.jsonl:2"):
        load_rows(config(path, overlong="refuse"), loaded)


def test_validation_by_fraction_is_apart_and_decided_by_its_own_seed(loaded: LoadedModel, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl")
    split = config(path, validation_fraction=0.25)
    train, held = load_rows(split, loaded)
    assert held is not None
    assert train.counts.documents + held.counts.documents == 40
    again, _ = load_rows(dataclasses.replace(split, seed=9), loaded)
    assert again.fingerprint == train.fingerprint, "the run's seed does not move the split"
    other, _ = load_rows(config(path, validation_fraction=0.25, split_seed=1), loaded)
    assert other.fingerprint != train.fingerprint
    assert load_rows(config(path), loaded)[1] is None


def test_validation_files_must_not_hold_training_documents(loaded: LoadedModel, tmp_path: Path) -> None:
    train, held = write_texts(tmp_path / "train.jsonl"), tmp_path / "held.jsonl"
    held.write_text('{"text": "something else"}\n')
    rows = load_rows(config(train, validation_paths=(held,)), loaded)[1]
    assert rows is not None
    assert rows.counts.documents == 1
    held.write_text(train.read_text().splitlines()[3] + "\n")
    with pytest.raises(DataError, match=r"held.jsonl:1: this validation document is also a training document"):
        load_rows(config(train, validation_paths=(held,)), loaded)


def test_checkpoints_without_tokenizer_or_eos_are_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl")
    mute = LoadedModel(model=loaded.model, tokenizer=None, config=loaded.config, path=loaded.path)
    with pytest.raises(ConfigError, match="has no tokenizer"):
        load_rows(config(path), mute)
    endless = dataclasses.replace(loaded.config, eos_token_ids=())
    with pytest.raises(ConfigError, match="names no EOS token"):
        load_rows(
            config(path),
            LoadedModel(model=loaded.model, tokenizer=loaded.tokenizer, config=endless, path=loaded.path),
        )
