"""The verses as documents, on a book of three chapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demo.corpus import read_passages, write_corpus
from difflm.data import check_disjoint, read_documents
from difflm.errors import DataError

VERSES = [("Ruth", 1, "aa"), ("Ruth", 1, "bbb"), ("Ruth", 2, "cc"), ("Job", 2, "dddd"), ("Job", 2, "ee")]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "kjv.jsonl"
    rows = [{"citation": "x", "text": text, "book": book, "chapter": chapter} for book, chapter, text in VERSES]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("max_characters", "expected"),
    [
        (None, ["aa bbb", "cc", "dddd ee"]),
        (1000, ["aa bbb", "cc", "dddd ee"]),
        (6, ["aa bbb", "cc", "dddd", "ee"]),
        (5, ["aa", "bbb", "cc", "dddd", "ee"]),
        (1, ["aa", "bbb", "cc", "dddd", "ee"]),
    ],
)
def test_passages_are_whole_verses_of_one_chapter(
    source: Path, max_characters: int | None, expected: list[str]
) -> None:
    passages = [document.text for document in read_passages(source, max_characters=max_characters)]
    assert passages == expected
    if max_characters is not None:
        assert all(len(text or "") <= max_characters or " " not in (text or "") for text in passages)


def test_files_are_disjoint_complete_and_reproducible(source: Path, tmp_path: Path) -> None:
    written = write_corpus(source, tmp_path / "out", validation_fraction=0.4)
    train, validation = list(read_documents(written.train)), list(read_documents(written.validation))
    check_disjoint(train, validation)
    assert sorted(d.text or "" for d in train + validation) == ["aa bbb", "cc", "dddd ee"]
    assert (len(train), len(validation)) == (written.train_documents, written.validation_documents)
    before = written.train.read_bytes(), written.validation.read_bytes()
    again = write_corpus(source, tmp_path / "out", validation_fraction=0.4)
    assert before == (again.train.read_bytes(), again.validation.read_bytes())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["text-train.jsonl", "text-validation.jsonl"]


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n')
    with pytest.raises(DataError, match="not the verse file"):
        read_passages(path)
    path.write_text("not json\n")
    with pytest.raises(DataError, match=r"a.jsonl:1: not valid JSON"):
        read_passages(path)
