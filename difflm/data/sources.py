"""Files, folders and patterns -> documents in a reproducible order, one at a time.

A document is never interpreted here, only read and checked; `tokens.py` turns it into ids. An error names the file
and the line (the row, in a table without lines).
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from difflm.data.columnar import read_arrow, read_parquet
from difflm.data.documents import Document
from difflm.data.formats import SUFFIXES, FileFormat, Format, Found, check_format, detect, named_format
from difflm.data.readers import read_csv, read_json, read_jsonl, read_text
from difflm.data.records import Fields
from difflm.data.shards import MANIFEST, is_prepared
from difflm.errors import DataError

_METADATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""What the datasets library writes beside Arrow files; no data."""
_READERS: dict[FileFormat, Callable[[Path, Fields], Iterator[Document]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "text": lambda file, _: read_text(file),
}


def read_documents(
    paths: str | Path | Sequence[str | Path],
    *,
    format: Format = "auto",
    fields: Fields | None = None,
    report: Callable[[Found], None] | None = None,
) -> Iterator[Document]:
    """Yield the documents of files, folders (read recursively) and glob patterns, in a reproducible order.

    A record holds plain text, a prompt with its completion, a conversation, a preference pair or ids (`records.py`
    has the fields); further fields (metadata) are ignored unless they belong to another format. A plain text file is
    one document, in pieces where it is longer than 1 MiB. All documents of one call must be of one kind.

    Args:
        paths: file, folder or pattern, or several of them; folders and patterns are sorted by name.
        format: how files are read, or "auto" to conclude it from the first rows of each.
        fields: how records are read; None for the defaults.
        report: is told what was concluded about each file, with its first document.

    Raises:
        DataError: a path that does not exist or is given twice, an empty or binary file, a record without the
            right fields, or documents or files of two kinds. The message names file and line.
    """
    check_format(format)
    files = list_files(paths, format=format)
    yield from of_one_kind(
        document
        for found in detect_all(files, format=format, fields=fields)
        for document in read_file(found, fields, report)
    )


def detect_all(files: Iterable[Path], *, format: Format, fields: Fields | None = None) -> list[Found]:
    """Return what each file holds.

    Raises:
        DataError: a file that cannot be read, or one in another format than the first.
    """
    found = [detect(file, format=format, fields=fields) for file in files]
    for each in found:
        if each.format != found[0].format:
            raise DataError(
                f"{each.file}:1: {each.format} in data that began with {found[0].format} ({found[0].file}); give "
                "each path its weight to mix them (data.weights), or leave one out"
            )
    return found


def read_file(
    found: Found, fields: Fields | None = None, report: Callable[[Found], None] | None = None
) -> Iterator[Document]:
    """Yield the documents of one file, which have to be of one kind; `report` is told with the first of them."""
    first: Document | None = None
    for document in _READERS[found.format](found.file, fields or Fields()):
        if first is None and report is not None:
            report(replace(found, holds=document.kind))
        first = first or document
        if document.kind != first.kind:
            raise DataError(
                f"{document.where}: a {document.kind} document in a file that began with a {first.kind} document "
                f"({first.where}); one file holds one kind"
            )
        yield document


def of_one_kind(documents: Iterable[Document]) -> Iterator[Document]:
    """Yield the documents, which have to be of one kind.

    Raises:
        DataError: names the first document of another kind.
    """
    first: tuple[str, str] | None = None
    for document in documents:
        first = first or (document.kind, document.where)
        if document.kind != first[0]:
            raise DataError(
                f"{document.where}: a {document.kind} document in data that began with a {first[0]} document "
                f"({first[1]}); train on them separately"
            )
        yield document


def list_files(paths: str | Path | Sequence[str | Path], *, format: Format = "auto") -> list[Path]:
    """Return the data files behind files, folders and glob patterns, each once, in a reproducible order.

    Args:
        paths: file, folder or pattern, or several of them.
        format: as in `read_documents`; decides which files of a folder count as data.

    Raises:
        DataError: a path or pattern without data files, or a file that is named twice.
    """
    entries = [paths] if isinstance(paths, str | Path) else list(paths)
    if not entries:
        raise DataError("data: no file given; name a .jsonl or .txt file, a folder or a pattern")
    files = [file for entry in entries for file in _expand(str(entry), format)]
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise DataError(f"{file}: the data names this file twice; name it once")
        seen.add(file.resolve())
    return files


def _expand(entry: str, format: Format) -> list[Path]:
    path = Path(entry)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [file for file in sorted(path.rglob("*")) if file.is_file() and _is_data(file, path, format)]
        if not found and any(path.glob("*.tokens")):
            raise DataError(
                f"{path}: token shards without manifest.json; copy the prepared folder again, or prepare again"
            )
        if not found:
            raise DataError(f"{path}: the folder holds no data file ({', '.join(SUFFIXES)}, also with .gz or .zst)")
        return found
    if glob.has_magic(entry):
        found = [Path(name) for name in sorted(glob.glob(entry, recursive=True)) if Path(name).is_file()]
        if not found:
            raise DataError(f"{entry}: no file matches the pattern")
        return found
    if path.exists():
        raise DataError(f"{path}: not a regular file; name a .jsonl or .txt file, a folder or a pattern")
    raise DataError(f"{path}: no such file or folder; name a .jsonl or .txt file, a folder or a pattern")


def _is_data(file: Path, folder: Path, format: Format) -> bool:
    """Return whether a file found in a folder counts as data: known suffix, nothing hidden on the way."""
    if any(part.startswith(".") for part in file.relative_to(folder).parts) or file.name in _METADATA:
        return False
    if file.name == MANIFEST and is_prepared(file.parent):
        return False
    found = named_format(file)
    # The content may differ from the name among the formats of text; tables of Parquet and Arrow keep to theirs.
    return found is not None and format in ("auto", found)
