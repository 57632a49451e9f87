"""Files as streams: compression seen by content, lines one at a time, memory bounded by one record."""

from __future__ import annotations

import contextlib
import gzip
import io
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

from difflm.errors import DataError

Compression = Literal["", "gzip", "zstd"]

MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
COMPRESSED_SUFFIXES: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
RECORD_BYTES = 256 << 20
"""Longest line, CSV cell or JSON object that is read; more is a file in another format."""
_CHUNK = 1 << 18


@contextlib.contextmanager
def open_stream(file: Path) -> Iterator[io.BufferedReader]:
    """Yield the file's bytes, decompressed; errors of the file system and of a damaged archive become one line.

    Raises:
        DataError: a file that cannot be read, an archive that is damaged or ends early.
    """
    try:
        with file.open("rb") as raw:
            compression = compression_of(raw.peek(4)[:4])
            if compression == "gzip":
                # A BufferedReader around it: reading lines from GzipFile itself is slow.
                yield io.BufferedReader(gzip.GzipFile(fileobj=raw), _CHUNK)  # type: ignore[arg-type]
            elif compression == "zstd":
                yield io.BufferedReader(_Zstd(raw, file), _CHUNK)
            else:
                yield raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{file}: the archive is damaged or ends early ({error}); copy it again") from None
    except OSError as error:
        if error.strerror is None:  # not of the operating system: a library found the content cut short
            reason = str(error).split("\n")[0]
            raise DataError(f"{file}: not a readable file, damaged or cut short ({reason}); copy it again") from None
        raise DataError(f"{file}: cannot be read ({error.strerror}); check the file and its permissions") from None


def compression_of(head: bytes) -> Compression:
    """Return how a file with these first bytes is compressed; "" for not at all."""
    for magic, name in MAGIC.items():
        if head.startswith(magic):
            return name
    return ""


class _Zstd(io.RawIOBase):
    """Decompresses frame after frame; an archive that ends inside a frame is an error, not the end."""

    def __init__(self, source: IO[bytes], file: Path) -> None:
        super().__init__()
        self._source = source
        self._new = _zstd_decompressor(file)
        self._frame: Any = None
        self._input = self._output = b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill `buffer` and return how many bytes; 0 at the end."""
        while not self._output:
            self._input = self._input or self._source.read(1 << 13)  # little: it may decompress to very much
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the last frame is not complete")
                return 0
            self._frame = self._frame or self._new()
            try:
                self._output = self._frame.decompress(self._input)
            except Exception as error:  # the classes differ between the two libraries
                raise EOFError(str(error)) from None
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        taken = self._output[: len(buffer)]
        self._output = self._output[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


def _zstd_decompressor(file: Path) -> Any:
    """Return what makes a decompressor of one frame: of Python 3.14, or of the library zstandard."""
    try:
        from compression.zstd import ZstdDecompressor  # type: ignore[import-not-found]
    except ImportError:
        pass
    else:
        return ZstdDecompressor
    try:
        import zstandard
    except ImportError:
        raise DataError(f"{file}: zstd needs a library; pip install 'difflm[data]'") from None
    return lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()


def head_of(file: Path, size: int = 1 << 16) -> bytes:
    """Return the first bytes of a file, decompressed."""
    with open_stream(file) as stream:
        return stream.read(size)


def lines(stream: io.BufferedReader, file: Path) -> Iterator[tuple[int, str]]:
    r"""Yield (number from 1, text with its \n) of each line; only \n ends a line, U+2028 and friends do not.

    Raises:
        DataError: a line that is no UTF-8 text, or too long to be one.
    """
    number = 0
    while line := stream.readline(RECORD_BYTES):
        number += 1
        if len(line) >= RECORD_BYTES:
            raise DataError(
                f"{file}:{number}: the line is longer than {RECORD_BYTES >> 20} MiB; JSONL has one object a line"
            )
        if b"\0" in line:
            raise DataError(
                f"{file}:{number}: looks like a binary file (zero byte at offset {line.index(0)}); data is UTF-8 text"
            )
        text = decode(line, f"{file}:{number}")
        yield number, text.removeprefix("\ufeff") if number == 1 else text


def decode(content: bytes, where: str) -> str:
    """Return UTF-8 bytes as text; `where` names them in an error.

    Raises:
        DataError: bytes that are no UTF-8.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 text (byte 0x{content[error.start]:02x} at offset {error.start}); "
            "a binary file, or text in another encoding"
        ) from None


@contextlib.contextmanager
def seekable(file: Path) -> Iterator[Any]:
    """Yield the file's decompressed bytes as a file that can be read anywhere; an archive goes to a temporary file."""
    with open_stream(file) as stream:
        if compression_of(head_bytes(file)) == "":
            yield stream
            return
        with tempfile.TemporaryFile() as copy:
            while chunk := stream.read(_CHUNK):
                copy.write(chunk)
            copy.seek(0)
            yield copy


def head_bytes(file: Path) -> bytes:
    """Return the first bytes of a file as they are on disk."""
    with file.open("rb") as raw:
        return raw.read(4)
