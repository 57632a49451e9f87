"""Rows with roles: what `--show` prints is what training sees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from difflm.checkpoints.convert import convert
from difflm.errors import ConfigError, DataError
from difflm.training.prepare import prepare
from difflm.training.preview import ShownRow, preview
from tests.standins import EOS, write_parent, write_texts


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preview")
    convert(write_parent(folder / "parent"), folder / "model", block_size=4)
    return folder / "model"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "ab ", "completion": "c\\u00e9"}\n{"prompt": "x", "completion": "y"}\n')
    return path


def roles(row: ShownRow) -> list[tuple[str, str]]:
    return [(token.text, token.role) for token in row.tokens]


def test_every_position_has_its_role(model: Path, pairs: Path) -> None:
    (row,) = preview([pairs], model=model, rows=1, row_length=16)
    assert roles(row) == [
        *(("a", "prompt"), ("b", "prompt"), (" ", "prompt"), ("c", "trainable")),
        *(("<127>", "trainable"), ("<102>", "trainable"), (EOS, "eos"), (EOS, "fill")),
        *(("x", "prompt"), ("y", "trainable"), (EOS, "eos"), (EOS, "fill")),
        *[(EOS, "padding")] * 4,
    ]
    assert [token.document for token in row.tokens] == [0] * 8 + [1] * 4 + [-1] * 4
    assert (row.source, row.number, row.documents_read) == (str(pairs), 0, 2)


def test_the_noise_masks_what_is_trainable_at_its_rate(model: Path, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl", documents=300)
    for rate in (0.0, 0.3, 1.0):
        rows = preview([path], model=model, rows=20, row_length=128, mask_rate=rate)
        tokens = [token for row in rows for token in row.tokens if token.role != "padding"]
        share = sum(token.masked for token in tokens) / len(tokens)
        assert share == pytest.approx(rate, abs=0.03)
        assert not any(token.masked for row in rows for token in row.tokens if token.role == "padding")


def test_prompts_and_padding_are_never_masked(model: Path, pairs: Path) -> None:
    (row,) = preview([pairs], model=model, rows=1, row_length=16, mask_rate=1.0)
    assert [token.masked for token in row.tokens] == [
        token.role in ("trainable", "eos", "fill") for token in row.tokens
    ]


def test_the_draw_is_that_of_its_seed(model: Path, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl")
    one, again, other = (preview([path], model=model, rows=2, seed=seed) for seed in (0, 0, 1))
    assert one == again != other


def test_only_the_beginning_is_read(model: Path, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl", documents=4000)
    with path.open("a") as file:
        file.write("not JSON\n")
    (row,) = preview([path], model=model, rows=1, row_length=64)
    assert row.documents_read < 50


def test_rows_are_shared_among_paths(model: Path, pairs: Path, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl")
    rows = preview([path, pairs], model=model, rows=3, row_length=64)
    assert [row.source for row in rows] == [str(path), str(path), str(pairs)]


def test_a_prepared_folder_shows_the_same_rows(model: Path, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl")
    prepare(path, model=model, output=tmp_path / "p")
    raw, stored = (preview([each], model=model, rows=2) for each in (path, tmp_path / "p"))
    assert [row.tokens for row in raw] == [row.tokens for row in stored]


def test_formats_are_reported(model: Path, pairs: Path) -> None:
    lines: list[str] = []
    preview([pairs], model=model, rows=1, report=lines.append)
    assert lines == [f"format: {pairs}: jsonl of prompt + completion (the first line is an object)"]


def test_what_cannot_be_shown_is_named(model: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mask_rate: 1\.5"):
        preview([pairs], model=model, rows=1, mask_rate=1.5)
    with pytest.raises(ConfigError, match="show: 0"):
        preview([pairs], model=model, rows=0)
    with pytest.raises(ConfigError, match="row_length: 30 is not a multiple of 4"):
        preview([pairs], model=model, rows=1, row_length=30)
    chat = tmp_path / "chat.jsonl"
    chat.write_text(json.dumps({"messages": []}) + "\n")
    with pytest.raises(DataError, match=r"chat.jsonl:1: field 'messages' holds no message"):
        preview([chat], model=model, rows=1)


def test_prepared_pairs_are_shown_whole(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    record = {"prompt": "q", "chosen": "ab", "rejected": "c" * 70}
    path.write_text(f"{json.dumps(record)}\n" * 3)
    prepare(path, model=model, output=tmp_path / "p")
    (row,) = preview([tmp_path / "p"], model=model, rows=1, row_length=80)
    assert [token.document for token in row.tokens] == [0] * 4 + [1] * 72 + [-1] * 4
    (first, _, last) = preview([tmp_path / "p"], model=model, rows=3, row_length=80)
    assert first.documents_read % 2 == last.documents_read % 2 == 0
