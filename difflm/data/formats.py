"""What is in a file: concluded from its first bytes and rows, its name only decides where they leave a choice."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from difflm.data.records import Fields, table_columns, telling_fields
from difflm.data.streams import COMPRESSED_SUFFIXES, Compression, compression_of, head_bytes, head_of
from difflm.errors import DataError

FileFormat = Literal["jsonl", "json", "text", "csv", "parquet", "arrow"]
Format = Literal["auto", "jsonl", "json", "text", "csv", "parquet", "arrow"]

FORMATS: tuple[FileFormat, ...] = ("jsonl", "json", "text", "csv", "parquet", "arrow")
SUFFIXES: dict[str, FileFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
"""What a file in a folder has to be called to count as data; each also with .gz or .zst behind it."""
_LISTED = 3
DELIMITERS = ",\t;"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was concluded about a file.

    Attributes:
        file: its path.
        format: how its rows are read.
        compression: "gzip", "zstd" or "".
        reason: what the conclusion rests on.
        holds: kind of its documents; "" before the first was read.
    """

    file: Path
    format: FileFormat
    compression: Compression
    reason: str
    holds: str = ""

    def __str__(self) -> str:
        """Return the conclusion in one line."""
        packed = f", {self.compression}" if self.compression else ""
        holds = "" if self.holds in ("", "text") else f" of {self.holds}"
        return f"{self.file}: {self.format}{packed}{holds} ({self.reason})"


def listed(found: Sequence[Found]) -> list[str]:
    """Return the conclusions about the files of one source, one line each; after a few, the rest in one."""
    lines = [str(each) for each in found[:_LISTED]]
    if len(found) > _LISTED:
        lines.append(f"and {len(found) - _LISTED} more files: {found[0].format}")
    return lines


def named_format(file: Path) -> FileFormat | None:
    """Return the format that a file's name promises; None for a name that promises nothing."""
    name = file.with_suffix("") if file.suffix.lower() in COMPRESSED_SUFFIXES else file
    return SUFFIXES.get(name.suffix.lower())


def check_format(format: str) -> None:
    """Refuse a name that is no format.

    Raises:
        DataError: names the formats there are.
    """
    if format != "auto" and format not in FORMATS:
        known = ", ".join(map(repr, FORMATS))
        raise DataError(f"data format: {format!r} is unknown; use 'auto', {known}")


def detect(file: Path, *, format: Format = "auto", fields: Fields | None = None) -> Found:
    """Return what a file holds.

    Args:
        file: regular file.
        format: a format takes the file's content for it; "auto" looks at the first bytes.
        fields: how records are read; None for the defaults.

    Raises:
        DataError: an empty or binary file, or content that could be anything.
    """
    head = head_of(file)
    if not head:
        raise DataError(f"{file}: the file is empty (0 bytes); give a file with text")
    compression = compression_of(head_bytes(file))
    if format != "auto":
        return Found(file=file, format=format, compression=compression, reason="as told")
    found, reason = _conclude(file, head, fields or Fields())
    return Found(file=file, format=found, compression=compression, reason=reason)


def _conclude(file: Path, head: bytes, fields: Fields) -> tuple[FileFormat, str]:
    binary = _binary_format(head)
    named = named_format(file)
    if binary:
        return binary, f"begins with {'PAR1' if binary == 'parquet' else 'the marks of Arrow IPC'}"
    if named in ("parquet", "arrow"):
        raise DataError(f"{file}: named like {named}, but it does not begin like it; repair it, or rename it")
    if b"\0" in head:
        raise DataError(f"{file}: looks like a binary file (zero byte at offset {head.index(0)}); data is UTF-8 text")
    text = head.decode("utf-8", errors="ignore").removeprefix("\ufeff").lstrip()
    known = telling_fields(fields)
    if text[:1] == "{":
        found = _first_object(text)
        if named in ("jsonl", "json") or (found and (known & found or named is None)):
            return "jsonl", "the first line is an object" if found else f"named {file.suffix}"
    if re.match(r"\[\s*[{\]]", text) and (named in ("json", "jsonl") or _object_names(text, known)):
        return "json", "begins with an array of objects"
    if named == "json":
        raise DataError(
            f"{file}: named .json, but it begins with {text[:12]!r}; expected an array of objects or one object a line"
        )
    if named != "text" and named != "jsonl":
        cells = _first_cells(text)
        if named == "csv" or (len(cells) > 1 and any(each <= set(cells) for each in table_columns(fields))):
            return "csv", f"columns {', '.join(map(repr, cells[:4]))}"
    if named is None:
        raise DataError(
            f"{file}: cannot tell the format from the suffix {file.suffix!r} or the first row; use .jsonl, .json, "
            ".txt, .csv, .parquet or .arrow, or name the format (data.format=text)"
        )
    return named, f"named {''.join(file.suffixes[-2:])}"


def _binary_format(head: bytes) -> FileFormat | None:
    if head.startswith(b"PAR1"):
        return "parquet"
    # An IPC file begins with its name, a stream with a continuation mark and the length of its schema.
    return "arrow" if head.startswith((b"ARROW1\0\0", b"\xff\xff\xff\xff")) else None


def _first_object(text: str) -> set[str]:
    """Return the field names of a first line that is a JSON object, or that is one as far as it can be seen."""
    line, newline, _ = text.partition("\n")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return set() if newline else set(re.findall(r'"(\w+)"\s*:', line[:4096]))
    return set(record) if isinstance(record, dict) else set()


def _object_names(text: str, known: frozenset[str]) -> bool:
    return bool(known & set(re.findall(r'"([^"\\]+)"\s*:', text)))


def _first_cells(text: str) -> list[str]:
    header = text.partition("\n")[0].rstrip("\r")
    return next(csv.reader(io.StringIO(header), delimiter=delimiter_of(header)), [])


def delimiter_of(header: str) -> str:
    """Return what separates the columns of a header: the one of comma, tab and semicolon that stands most often."""
    return max(DELIMITERS, key=header.count)
