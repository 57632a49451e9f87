"""From paths to token stores: raw and prepared alike, and what does not belong together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.errors import ConfigError, DataError
from difflm.training.config import DataConfig
from difflm.training.opening import open_sources, special_ids
from difflm.training.prepare import prepare
from tests.standins import byte_tokenizer, write_parent, write_texts


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parent(tmp_path_factory.mktemp("opening") / "parent")


@pytest.fixture(scope="module")
def loaded(parent: Path) -> LoadedModel:
    return load_model(parent)


def data(*paths: Path, **fields: Any) -> DataConfig:
    return DataConfig(paths=paths, **fields)


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def opened(config: DataConfig, loaded: LoadedModel) -> list[tuple[str, float | None, int]]:
    return [
        (Path(source.name).name, source.weight, len(source.store))
        for source in open_sources(config.paths, config.weights, config, loaded)
    ]


def test_paths_without_weights_are_one_source(loaded: LoadedModel, tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.jsonl", {"text": "x"}), write(tmp_path / "b.jsonl", {"text": "y"}, {"text": "z"})
    assert opened(data(one, two), loaded) == [("b.jsonl", None, 3)]
    assert opened(data(one, two, weights=(1.0, 3.0)), loaded) == [("a.jsonl", 1.0, 1), ("b.jsonl", 3.0, 2)]


def test_kinds_and_formats_mix_only_with_weights(loaded: LoadedModel, tmp_path: Path) -> None:
    text, pair = (
        write(tmp_path / "a.jsonl", {"text": "x"}),
        write(tmp_path / "b.jsonl", {"prompt": "p", "completion": "c"}),
    )
    table = tmp_path / "c.csv"
    table.write_text("text,n\nx,1\n")
    with pytest.raises(DataError, match=r"b.jsonl:1: a prompt \+ completion document in data that began with a text"):
        opened(data(text, pair), loaded)
    with pytest.raises(DataError, match=r"c.csv:1: csv in data that began with jsonl .*data.weights"):
        opened(data(text, table), loaded)
    assert len(opened(data(text, pair, table, weights=(1.0, 1.0, 1.0)), loaded)) == 3


def test_what_was_concluded_is_noted(loaded: LoadedModel, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "x"})
    (source,) = open_sources([path], (), data(path), loaded)
    assert source.notes == (f"{path}: jsonl (the first line is an object)",)


def test_a_prepared_folder_brings_its_sources_and_weights(parent: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    paths = [write_texts(tmp_path / f"{name}.jsonl", documents=count) for name, count in (("a", 9), ("b", 5))]
    prepare(paths, model=parent, output=tmp_path / "plain")
    prepare(paths, model=parent, output=tmp_path / "mixed", weights=(1.0, 3.0))
    assert opened(data(tmp_path / "plain"), loaded) == [("a.jsonl", None, 14)]
    assert opened(data(tmp_path / "mixed"), loaded) == [("a.jsonl", 1.0, 9), ("b.jsonl", 3.0, 5)]
    third = write(tmp_path / "c.jsonl", {"text": "x"})
    assert opened(data(tmp_path / "mixed", third, weights=(2.0, 5.0)), loaded) == [
        ("a.jsonl", 0.5, 9),
        ("b.jsonl", 1.5, 5),
        ("c.jsonl", 5.0, 1),
    ]
    with pytest.raises(DataError, match=r"was prepared as a part of a mixture, and stands beside other paths"):
        opened(data(third, tmp_path / "mixed"), loaded)
    assert opened(data(third, tmp_path / "plain"), loaded) == [("c.jsonl", None, 15)]


def test_nothing_is_named_twice(parent: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", documents=3)
    prepare(path, model=parent, output=tmp_path / "p")
    with pytest.raises(DataError, match="names this file twice"):
        opened(data(path, path, weights=(1.0, 1.0)), loaded)
    with pytest.raises(DataError, match="names this folder twice"):
        opened(data(tmp_path / "p", tmp_path / "p", weights=(1.0, 1.0)), loaded)


def test_prepared_ids_belong_to_one_tokenizer(parent: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", documents=3)
    prepare(path, model=parent, output=tmp_path / "p")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["begin"])
    other = load_model(write_parent(tmp_path / "other", tokenizer=tokenizer))
    with pytest.raises(DataError, match=r"p: was prepared with another tokenizer \(that of parent\)"):
        opened(data(tmp_path / "p"), other)

    def with_facts(**changed: Any) -> LoadedModel:
        facts = dataclasses.replace(loaded.config, **changed)
        return LoadedModel(loaded.model, loaded.tokenizer, facts, loaded.path)

    with pytest.raises(DataError, match="with EOS 256"):
        opened(data(tmp_path / "p"), with_facts(eos_token_ids=(5,)))
    with pytest.raises(DataError, match=r"p: .*a\.jsonl:3 holds id \d+, the mask token of"):
        opened(data(tmp_path / "p"), with_facts(mask_token_id=loaded.encode("2")[0]))
    # A mask id that no document has, among the others or behind them: what the parent's tokenizer made will do.
    for mask_id in (loaded.encode("~")[0], 257):
        assert opened(data(tmp_path / "p"), with_facts(mask_token_id=mask_id)) == [("p", None, 3)]


def test_a_split_is_made_once(parent: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl")
    prepare(path, model=parent, output=tmp_path / "p", validation_fraction=0.25, split_seed=2)
    held = write(tmp_path / "held.jsonl", {"text": "other"})
    with pytest.raises(ConfigError, match=r"validation_fraction: 0.1 \(split_seed 0\), but .*p was prepared with 0.25"):
        opened(data(tmp_path / "p", validation_fraction=0.1), loaded)
    with pytest.raises(ConfigError, match=r"validation_paths: .*p was prepared with a validation side"):
        opened(data(tmp_path / "p", validation_paths=(held,)), loaded)
    for fields in ({}, {"validation_fraction": 0.25, "split_seed": 2}):
        config = data(tmp_path / "p", **fields)
        (source,) = open_sources(config.paths, (), config, loaded)
        assert source.held is not None
        assert len(source.store) + len(source.held) == 40
    with pytest.raises(DataError, match="some of the paths have a validation side"):
        opened(data(held, tmp_path / "p"), loaded)


def test_checkpoints_without_tokenizer_or_eos_are_refused(loaded: LoadedModel) -> None:
    mute = LoadedModel(model=loaded.model, tokenizer=None, config=loaded.config, path=loaded.path)
    with pytest.raises(ConfigError, match=r"^train.model: .* has no tokenizer"):
        special_ids(mute)
    endless = dataclasses.replace(loaded.config, eos_token_ids=())
    with pytest.raises(ConfigError, match=r"^model: .* names no EOS token"):
        special_ids(LoadedModel(loaded.model, loaded.tokenizer, endless, loaded.path), field="model")
