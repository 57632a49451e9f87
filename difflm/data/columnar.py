"""Parquet and Arrow files -> documents, a few rows in memory at a time. Needs pyarrow, imported when it is used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from difflm.data.documents import Document
from difflm.data.records import Fields, check_fields, parse_record, used_fields
from difflm.data.streams import head_of, open_stream, seekable
from difflm.errors import DataError

_ROWS = 256


def read_parquet(file: Path, fields: Fields) -> Iterator[Document]:
    """Yield the documents of a Parquet file; only the columns that are used are read, row group after row group."""
    arrow = _library(file)
    import pyarrow.parquet

    try:
        with seekable(file) as stream:
            table = pyarrow.parquet.ParquetFile(stream, pre_buffer=False)
            columns = _columns(file, table.schema_arrow.names, fields)
            batches = table.iter_batches(batch_size=_ROWS, columns=columns, use_threads=False)
            yield from _documents(file, batches, columns, fields)
    except arrow.ArrowException as error:
        raise DataError(f"{file}: not a readable Parquet file ({_first_line(error)}); copy it again") from None


def read_arrow(file: Path, fields: Fields) -> Iterator[Document]:
    """Yield the documents of an Arrow IPC file or stream, batch after batch."""
    arrow = _library(file)
    is_file = head_of(file, 8).startswith(b"ARROW1")
    try:
        with (seekable if is_file else open_stream)(file) as stream:
            table: Any = arrow.ipc.open_file(stream) if is_file else arrow.ipc.open_stream(stream)
            columns = _columns(file, table.schema.names, fields)
            read = (table.get_batch(number) for number in range(table.num_record_batches)) if is_file else table
            batches = (
                batch.slice(start, _ROWS).select(columns) for batch in read for start in range(0, batch.num_rows, _ROWS)
            )
            yield from _documents(file, batches, columns, fields)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable Arrow file ({_first_line(error)}); copy it again") from None


def _library(file: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise DataError(f"{file}: Parquet and Arrow need pyarrow; pip install 'difflm[data]'") from None
    return pyarrow


def _columns(file: Path, names: list[str], fields: Fields) -> list[str]:
    return used_fields(check_fields(names, f"{file}:1", fields), names)


def _documents(file: Path, batches: Any, columns: list[str], fields: Fields) -> Iterator[Document]:
    """Yield the documents of record batches; the number in `where` counts rows from 1."""
    number = 0
    for batch in batches:
        values = [column.to_pylist() for column in batch.columns]
        for row in zip(*values, strict=True):
            number += 1
            yield parse_record(dict(zip(columns, row, strict=True)), f"{file}:{number}", fields)
    if not number:
        raise DataError(f"{file}: the file is empty; the table has no row")


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]
