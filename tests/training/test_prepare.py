"""`prepare`: what it writes, counts and refuses; nothing half-done is left."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import difflm
from difflm.checkpoints.convert import convert
from difflm.data import split_validation
from difflm.data.shards import open_prepared
from difflm.data.sources import read_documents
from difflm.errors import CheckpointError, ConfigError, DataError
from difflm.training import passes
from difflm.training import prepare as module
from difflm.training.prepare import Example, prepare
from tests.standins import write_parent, write_texts


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepare")
    convert(write_parent(folder / "parent"), folder / "model", block_size=4)
    return folder / "model"


def write(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def words(seed: int, count: int = 60) -> str:
    generator = random.Random(seed)
    return " ".join("".join(generator.choices("abcdefgh", k=generator.randint(2, 8))) for _ in range(count))


def test_the_split_is_that_of_a_list(model: Path, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl", documents=200)
    summary = difflm.prepare(path, model=model, output=tmp_path / "p", validation_fraction=0.2, split_seed=3)
    training, validation = split_validation(read_documents(path), fraction=0.2, seed=3)
    (source,) = open_prepared(tmp_path / "p").sources
    for store, expected in ((source.train, training), (source.validation, validation)):
        assert [store.where(index) for index in range(len(store))] == [document.where for document in expected]
    assert (summary.documents, summary.sources[0].validation_documents) == (200, len(validation))
    assert summary.tokens == int(source.train.column("length").sum())
    assert sorted(file.suffix for file in (tmp_path / "p").iterdir()) == sorted(
        [".json", *[".tokens", ".documents"] * 2]
    )


def test_duplicates_are_reported_and_left_out_by_choice(model: Path, tmp_path: Path) -> None:
    base = [words(seed) for seed in range(12)]
    near = base[3].replace(" ", "  ", 1).upper()[:-3] + "xyz"
    first = write(tmp_path / "a.jsonl", *base, base[5], near)
    second = write(tmp_path / "b.jsonl", words(100), base[2], base[2])
    kept = prepare([first, second], model=model, output=tmp_path / "kept")
    assert (kept.exact_duplicates, kept.dropped_duplicates, kept.near_duplicates) == (3, 0, 1)
    assert Example(where=f"{second}:2", first=f"{first}:3", similarity=1.0, exact=True) in kept.examples
    (resembling,) = [example for example in kept.examples if not example.exact]
    assert (resembling.where, resembling.first) == (f"{first}:14", f"{first}:4")
    dropped = prepare([first, second], model=model, output=tmp_path / "dropped", drop_duplicates=True)
    assert dropped.dropped_duplicates == 3
    stores = [source.train for source in open_prepared(tmp_path / "dropped").sources]
    assert [len(store) for store in stores] == [13, 1]
    unseen = prepare([first, second], model=model, output=tmp_path / "unseen", near_threshold=0.0)
    assert unseen.near_duplicates is None


def test_row_figures_are_those_of_packing(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    records = [{"prompt": "p" * size, "completion": "c" * 4} for size in (3, 9, 60, 20, 11, 26, 2)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    summary = prepare(path, model=model, output=tmp_path / "p", row_length=32)
    assert (summary.overlong_answers, summary.overlong_tokens, summary.split_texts) == (1, 65, 0)
    # 8 | 14 | 25 | 16 | 31 | 7: in order 8 14, 25, 16, 31, 7; best 31, 25 7, 16 14, 8
    assert (summary.rows_greedy, summary.rows_best_fit, summary.row_tokens) == (5, 4, 101)
    assert summary.fill_rate(summary.rows_best_fit) == pytest.approx(101 / 128)
    long = prepare(write(tmp_path / "long.jsonl", "x" * 70), model=model, output=tmp_path / "q", row_length=32)
    assert (long.split_texts, long.rows_best_fit, long.row_tokens) == (1, 3, 71)


def test_the_manifest_records_where_everything_came_from(model: Path, tmp_path: Path) -> None:
    paths = [write_texts(tmp_path / f"{name}.jsonl", documents=9) for name in "ab"]
    prepare(paths, model=model, output=tmp_path / "p", weights=(1, 3), validation_fraction=0.1, split_seed=5)
    manifest = open_prepared(tmp_path / "p").manifest
    assert [source["weight"] for source in manifest["sources"]] == [1, 3]
    (entry,) = manifest["sources"][1]["files"]
    assert (entry["path"], entry["bytes"], entry["format"]) == (str(paths[1]), paths[1].stat().st_size, "jsonl")
    assert len(entry["sha256"]) == 64
    assert manifest["tokenizer"]["eos_id"] == 256
    assert manifest["tokenizer"]["mask_id"] == 257
    assert (manifest["validation"]["fraction"], manifest["validation"]["seed"]) == (0.1, 5)
    assert manifest["dtype"] == "uint16"


def test_a_literal_mask_token_is_ordinary_text(model: Path, tmp_path: Path) -> None:
    prepare(write(tmp_path / "a.jsonl", "say <|mask|> twice"), model=model, output=tmp_path / "p")
    manifest = open_prepared(tmp_path / "p").manifest
    assert manifest["sources"][0]["train"]["largest_id"] == 256
    ids = tmp_path / "ids.jsonl"
    for wrong, message in ((257, "token 1 of the document is the mask token"), (300, "the tokenizer's ids end at 257")):
        ids.write_text(json.dumps({"input_ids": [5, wrong]}) + "\n")
        with pytest.raises(DataError, match=message):
            prepare(ids, model=model, output=tmp_path / "q")


def test_rows_of_ids_without_eos_are_counted(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "ids.jsonl"
    path.write_text('{"input_ids": [5, 256]}\n{"input_ids": [5, 6]}\n')
    summary = prepare(path, model=model, output=tmp_path / "p")
    assert (summary.without_eos, summary.sources[0].kind) == (1, "token ids")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weights": (1.0, 2.0)}, ConfigError, "weights: 2 weights for 1 paths"),
        ({"weights": (0.0,)}, ConfigError, "holds one that is not above 0"),
        ({"near_threshold": 1.5}, ConfigError, "near_threshold: 1.5"),
        ({"shard_tokens": 0}, ConfigError, "shard_tokens: 0"),
        ({"row_length": 0}, ConfigError, "row_length: 0"),
        ({"validation_fraction": 1.0}, DataError, "validation fraction: 1.0 is out of range"),
        ({"format": "orc"}, DataError, "data format: 'orc' is unknown"),
        ({"text_field": "txt"}, DataError, "field 'txt' is missing"),
    ],
)
def test_bad_arguments_are_named_and_leave_nothing(
    model: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    path = write(tmp_path / "a.jsonl", "x", "y")
    with pytest.raises(error, match=message):
        prepare(path, model=model, output=tmp_path / "p", **options)
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_an_error_in_the_last_line_leaves_nothing(model: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *[words(seed) for seed in range(600)])
    with path.open("a") as file:
        file.write('{"txt": "x"}\n')
    with pytest.raises(DataError, match=r"a.jsonl:601: field 'text' is missing"):
        prepare(path, model=model, output=tmp_path / "p")
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_an_output_that_is_not_free_is_refused_first(model: Path, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "precious").write_text("x")
    with pytest.raises(CheckpointError, match="not empty"):
        prepare(tmp_path / "absent", model=model, output=tmp_path / "p")
    assert (tmp_path / "p" / "precious").read_text() == "x"


@pytest.mark.parametrize("drop_duplicates", [False, True])
def test_a_file_that_grows_meanwhile_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drop_duplicates: bool
) -> None:
    path = write(tmp_path / "a.jsonl", "x", "y")
    second = passes.second_pass

    def later(*arguments: Any) -> Any:
        with path.open("a") as more:
            more.write('{"text": "z"}\n' * 20)
        return second(*arguments)

    monkeypatch.setattr(module, "second_pass", later)
    with pytest.raises(DataError, match=r"a.jsonl: changed while it was read"):
        prepare(path, model=model, output=tmp_path / "p", drop_duplicates=drop_duplicates)
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_prepared_folder_is_not_prepared_again(model: Path, tmp_path: Path) -> None:
    prepare(write(tmp_path / "a.jsonl", "x"), model=model, output=tmp_path / "p")
    with pytest.raises(DataError, match="p: is a prepared folder already"):
        prepare(tmp_path / "p", model=model, output=tmp_path / "q")


def test_formats_are_reported_before_the_work(model: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    path = write(tmp_path / "a.jsonl", "x", "y")
    prepare(path, model=model, output=tmp_path / "p", report=lines.append)
    assert lines[0] == f"format: {path}: jsonl (the first line is an object)"
    assert [line[:9] for line in lines[1:]] == ["pass 1 of", "documents", "pass 2 of"]
    assert lines[2] == f"documents: {path}: text"


def test_kinds_mix_with_weights_only(model: Path, tmp_path: Path) -> None:
    text = write(tmp_path / "a.jsonl", "x")
    pair = tmp_path / "b.jsonl"
    pair.write_text('{"prompt": "p", "completion": "c"}\n')
    with pytest.raises(DataError, match=r"b.jsonl: prompt \+ completion documents beside text documents"):
        prepare([text, pair], model=model, output=tmp_path / "p")
    summary = prepare([text, pair], model=model, output=tmp_path / "p", weights=(1, 1))
    assert [source.kind for source in summary.sources] == ["text", "prompt + completion"]
