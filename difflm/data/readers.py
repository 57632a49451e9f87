"""Files of text -> documents, one record in memory at a time: JSONL, a JSON array, CSV, plain text."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

from difflm.data.documents import Document
from difflm.data.formats import delimiter_of
from difflm.data.records import Fields, check_fields, parse_record, used_fields
from difflm.data.streams import RECORD_BYTES, decode, lines, open_stream
from difflm.errors import DataError

TEXT_PIECE_BYTES = 1 << 20
"""A text file longer than this is read in pieces that end at a line."""
_CHUNK = 1 << 18
_STRUCTURE = re.compile(rb'["\\{}\[\]]')


def read_jsonl(file: Path, fields: Fields) -> Iterator[Document]:
    """Yield the documents of a file with one JSON object a line; blank lines are skipped."""
    empty = True
    with open_stream(file) as stream:
        for number, text in lines(stream, file):
            if not text.strip():
                continue
            empty = False
            yield parse_record(parse_json(text, f"{file}:{number}"), f"{file}:{number}", fields)
    if empty:
        raise DataError(f"{file}: the file is empty; JSONL needs one object a line")


def parse_json(text: str, where: str) -> object:
    """Return the value of JSON text; `where` names it in an error.

    Raises:
        DataError: no JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error}); each line is one JSON object") from None


def read_json(file: Path, fields: Fields) -> Iterator[Document]:
    """Yield the documents of a JSON array of objects; `where` has the line on which an object begins."""
    empty = True
    with open_stream(file) as stream:
        for line, content in _elements(stream, file):
            empty = False
            where = f"{file}:{line}"
            yield parse_record(parse_json(decode(content, where), where), where, fields)
    if empty:
        raise DataError(f"{file}: the file is empty; the JSON array holds no object")


def _elements(stream: io.BufferedReader, file: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line, bytes) of each object of an array, found by its braces, so that only one is in memory."""
    text = _Cursor(stream, file)
    if text.next_mark() != b"[":
        raise DataError(f"{file}:{text.line}: not a JSON array; expected '['")
    mark = text.next_mark()
    while mark != b"]":
        if mark != b"{":
            raise DataError(f"{file}:{text.line}: expected an object in the array, found {mark!r}")
        line = text.line
        yield line, text.take_object()
        mark = text.next_mark()
        if mark == b",":
            mark = text.next_mark()
            if mark == b"]":
                raise DataError(f"{file}:{text.line}: not valid JSON (a comma before the end of the array)")
        elif mark != b"]":
            raise DataError(f"{file}:{text.line}: not valid JSON (expected ',' or ']', found {mark!r})")
    if text.next_mark(optional=True):
        raise DataError(f"{file}:{text.line}: not valid JSON (something stands behind the array)")


class _Cursor:
    """Walks through the bytes of a JSON file, a chunk in memory, and counts lines."""

    def __init__(self, stream: io.BufferedReader, file: Path) -> None:
        self.line = 1
        self._stream, self._file = stream, file
        self._buffer = stream.read(_CHUNK).removeprefix(b"\xef\xbb\xbf")
        self._place = 0  # of the first byte that was not taken yet

    def next_mark(self, *, optional: bool = False) -> bytes:
        """Take and return the next byte that is no white space; b"" at the end of the file if `optional`."""
        while self._buffer:
            while self._place < len(self._buffer):
                byte = self._buffer[self._place : self._place + 1]
                self._place += 1
                if byte not in b" \t\r\n":
                    return byte
                self.line += byte == b"\n"
            self._refill()
        if not optional:
            raise self._cut_short()
        return b""

    def take_object(self) -> bytes:
        """Take the rest of an object whose opening brace was taken, and return all of it."""
        parts, size, depth, in_string = [b"{"], 1, 1, False
        skip = self._place  # bytes before it are escaped
        while self._buffer:
            for match in _STRUCTURE.finditer(self._buffer, self._place):
                place, mark = match.start(), match[0]
                if place < skip:
                    continue
                if in_string:
                    skip = place + 2 if mark == b"\\" else skip
                    in_string = mark != b'"'
                elif mark == b'"':
                    in_string = True
                else:
                    depth += 1 if mark in b"{[" else -1 if mark in b"}]" else 0
                if depth == 0:
                    parts.append(self._buffer[self._place : place + 1])
                    self._place = place + 1
                    content = b"".join(parts)
                    self.line += content.count(b"\n")
                    return content
            parts.append(self._buffer[self._place :])
            size += len(parts[-1])
            if size > RECORD_BYTES:
                raise DataError(
                    f"{self._file}:{self.line}: an object of more than {RECORD_BYTES >> 20} MiB; unbalanced?"
                )
            skip = max(skip - len(self._buffer), 0)
            self._refill()
        raise self._cut_short()

    def _refill(self) -> None:
        self._buffer, self._place = self._stream.read(_CHUNK), 0

    def _cut_short(self) -> DataError:
        return DataError(f"{self._file}:{self.line}: not valid JSON (the array ends early); the file is not complete")


def read_csv(file: Path, fields: Fields) -> Iterator[Document]:
    """Yield the documents of a table with a header; the columns are named like the fields of JSONL."""
    limit = csv.field_size_limit(RECORD_BYTES)
    try:
        with open_stream(file) as stream:
            yield from _table(stream, file, fields)
    finally:
        csv.field_size_limit(limit)


def _table(stream: io.BufferedReader, file: Path, fields: Fields) -> Iterator[Document]:
    text = (line for _, line in lines(stream, file))
    header = next(text, "")
    delimiter = delimiter_of(header)
    names = next(csv.reader([header], delimiter=delimiter), [])
    form = check_fields(names, f"{file}:1", fields)
    if form.nested:
        raise DataError(f"{file}:1: column {form.needs[0]!r} cannot be read from CSV; use JSONL, Parquet or Arrow")
    if len(set(names)) < len(names):
        raise DataError(f"{file}:1: a column name stands twice in {', '.join(map(repr, names[:8]))}; rename one")
    columns = {name: names.index(name) for name in used_fields(form, names)}
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    empty = True
    while True:
        where = f"{file}:{rows.line_num + 2}"  # a row may have several lines; this is its first
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise DataError(f"{where}: not valid CSV ({error}); check the quotes") from None
        if row is None:
            break
        if not row:
            continue
        empty = False
        if len(row) != len(names):
            raise DataError(
                f"{where}: {len(row)} cells in a row, {len(names)} in the header; quote cells that hold {delimiter!r}"
            )
        yield parse_record({name: row[column] for name, column in columns.items()}, where, fields)
    if empty:
        raise DataError(f"{file}: the file is empty; CSV needs rows below the header")


def read_text(file: Path) -> Iterator[Document]:
    """Yield a plain text file as one document, or in pieces that end at a line where it is very long."""
    empty = True
    with open_stream(file) as stream:
        waiting: list[str] = []
        size = 0
        for _, text in _text_lines(stream, file):
            if size and size + len(text) > TEXT_PIECE_BYTES:
                yield Document(text="".join(waiting), complete=False, where=str(file))
                waiting, size, empty = [], 0, False
            waiting.append(text)
            size += len(text)
        rest = "".join(waiting)
    if rest.strip() or not empty:  # white space behind the last piece still ends the text
        yield Document(text=rest, where=str(file))
    else:
        raise DataError(f"{file}: the file is empty; a plain text file is one document and needs text")


def _text_lines(stream: io.BufferedReader, file: Path) -> Iterator[tuple[int, str]]:
    """Yield (offset, text) of lines; a line that is longer than a piece comes in parts."""
    offset, kept = 0, b""
    while content := stream.readline(TEXT_PIECE_BYTES):
        if b"\0" in content:
            place = offset + content.index(0)
            raise DataError(f"{file}: looks like a binary file (zero byte at offset {place}); data is UTF-8 text")
        whole, kept = _whole_characters(kept + content)
        text = _decode_at(whole, file, offset)
        yield offset, (text if offset else text.removeprefix("\ufeff")).replace("\r\n", "\n")
        offset += len(whole)
    if kept:
        _decode_at(kept, file, offset)


def _whole_characters(content: bytes) -> tuple[bytes, bytes]:
    """Return the content up to its last whole character, and the bytes of a character that was cut."""
    if content.endswith(b"\n"):
        return content, b""
    for back in range(1, min(4, len(content)) + 1):
        lead = content[-back]
        if lead >= 0xC0:
            needed = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return (content[:-back], content[-back:]) if needed > back else (content, b"")
        if lead < 0x80:
            break
    return content, b""


def _decode_at(content: bytes, file: Path, offset: int) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: not UTF-8 text (byte 0x{content[error.start]:02x} at offset {offset + error.start}); "
            "a binary file, or text in another encoding"
        ) from None
