"""Parquet and Arrow: the documents of JSONL, in small batches, from archives as well."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from difflm.data import Document, read_documents
from difflm.errors import DataError

TEXTS = [f"text {number}" for number in range(1000)]


def write(file: Path, columns: dict[str, Any], kind: str) -> Path:
    table = pa.table(columns)
    if kind == "parquet":
        pq.write_table(table, file, row_group_size=300)
    elif kind == "file":
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=170)
    else:
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=700)
    return file


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
@pytest.mark.parametrize("packing", ["", "gz", "zst"])
def test_tables_give_the_documents_of_jsonl(tmp_path: Path, kind: str, packing: str) -> None:
    file = write(tmp_path / "table", {"text": TEXTS, "n": list(range(1000))}, kind)
    if packing:
        content = file.read_bytes()
        file.write_bytes(gzip.compress(content) if packing == "gz" else zstandard.compress(content))
    assert list(read_documents(file)) == [
        Document(text=text, where=f"{file}:{number}") for number, text in enumerate(TEXTS, start=1)
    ]


@pytest.mark.parametrize("kind", ["parquet", "stream"])
def test_conversations_and_preferences(tmp_path: Path, kind: str) -> None:
    """A table gives every message every key; those that are null were not there."""
    talk = [
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 1}],
        [
            {"role": "user", "content": "r", "name": "me"},
            {"role": "assistant", "content": "b"},
            {"role": "assistant", "content": "c", "weight": 0},
        ],
    ]
    lines = [json.dumps({"messages": each}) for each in talk]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    table = write(tmp_path / "chats", {"messages": talk, "id": [1, 2]}, kind)
    read, expected = (list(read_documents(file)) for file in (table, tmp_path / "lines.jsonl"))
    assert [document.chat for document in read] == [document.chat for document in expected]
    sides = {"prompt": ["q"], "chosen": [talk[0][1:]], "rejected": [talk[1][1:2]], "source": ["x"]}
    (pair,) = read_documents(write(tmp_path / "pairs", sides, kind))
    assert pair.chosen is not None
    assert pair.chosen.chat == expected[0].chat


@pytest.mark.parametrize("kind", ["parquet", "stream"])
def test_rows_of_ids_and_pairs(tmp_path: Path, kind: str) -> None:
    columns = {"input_ids": pa.array([[1, 2], [3, 4, 5]], pa.list_(pa.int32())), "labels": [[-100, 2], [3, 4, 5]]}
    read = list(read_documents(write(tmp_path / "ids", columns, kind)))
    assert [(document.token, document.trainable) for document in read] == [
        ([1, 2], [False, True]),
        ([3, 4, 5], [True] * 3),
    ]
    dictionary = pa.array(["p", "p"]).dictionary_encode()
    columns = {"prompt": dictionary, "completion": pa.array(["a", "b"], pa.large_string())}
    read = list(read_documents(write(tmp_path / "pairs", columns, kind)))
    assert [(document.prompt, document.completion) for document in read] == [("p", "a"), ("p", "b")]


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_bad_tables_are_named_with_the_row(tmp_path: Path, kind: str) -> None:
    def failure(file: Path) -> str:
        with pytest.raises(DataError) as caught:
            list(read_documents(file))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    file = write(tmp_path / "null", {"text": ["a", None]}, kind)
    assert failure(file).startswith(f"{file}:2: field 'text' is null")
    file = write(tmp_path / "number", {"text": [1, 2]}, kind)
    assert failure(file).startswith(f"{file}:1: field 'text' is a number (1)")
    file = write(tmp_path / "bytes", {"text": [b"a"]}, kind)
    assert "field 'text' is a value" in failure(file)
    file = write(tmp_path / "chat", {"messages": ["a"]}, kind)
    assert failure(file).startswith(f"{file}:1: field 'messages' is a string")
    file = write(tmp_path / "empty", {"text": pa.array([], pa.string())}, kind)
    assert "the table has no row" in failure(file)
    file = write(tmp_path / "whole", {"text": TEXTS}, kind)
    file.write_bytes(file.read_bytes()[:2000])
    assert "not a readable" in failure(file)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.parquet", {"text": ["x"]}, "parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"a.parquet: Parquet and Arrow need pyarrow; pip install 'difflm\[data\]'"):
        list(read_documents(file))
