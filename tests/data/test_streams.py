"""Compressed files as streams: bounded, complete or refused."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest
import zstandard

from difflm.data import streams
from difflm.data.streams import compression_of, head_of, lines, open_stream, seekable
from difflm.errors import DataError

CONTENT = b"".join(b'{"text": "line %d"}\n' % number for number in range(20_000))


def packed(name: str) -> bytes:
    if name == "gzip":
        return gzip.compress(CONTENT[:1000]) + gzip.compress(CONTENT[1000:])
    if name == "zstd":  # two frames, the second of unknown size
        return zstandard.compress(CONTENT[:1000]) + zstandard.ZstdCompressor().compressobj().compress(b"") + streamed()
    return CONTENT


def streamed() -> bytes:
    target = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(target, closefd=False) as writer:
        writer.write(CONTENT[1000:])
    return target.getvalue()


@pytest.mark.parametrize("name", ["", "gzip", "zstd"])
def test_compression_is_seen_by_content_and_undone(tmp_path: Path, name: str) -> None:
    file = tmp_path / "no-suffix"
    file.write_bytes(packed(name))
    assert compression_of(file.read_bytes()) == name
    assert head_of(file, 50) == CONTENT[:50]
    with open_stream(file) as stream:
        assert list(lines(stream, file)) == [
            (number, text) for number, text in enumerate(CONTENT.decode().splitlines(keepends=True), start=1)
        ]
    with seekable(file) as stream:
        stream.seek(1500)
        assert stream.read(40) == CONTENT[1500:1540]


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_an_archive_that_ends_early_or_is_damaged_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / "a.jsonl"
    whole = packed(name)
    for content in (whole[:-20], whole[: len(whole) // 2], whole[:40] + b"\xff\xff\xff\xff" + whole[44:]):
        file.write_bytes(content)
        with pytest.raises(DataError, match="the archive is damaged or ends early"), open_stream(file) as stream:
            stream.read()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent: cannot be read \(No such file"), open_stream(tmp_path / "absent"):
        pass


def test_a_line_without_an_end_is_refused_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RECORD_BYTES", 1 << 20)
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"ok\n" + b"x" * (3 << 20))
    with pytest.raises(DataError, match=r"a.jsonl:2: the line is longer than 1 MiB"), open_stream(file) as stream:
        list(lines(stream, file))


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    monkeypatch.setitem(__import__("sys").modules, "compression.zstd", None)
    file = tmp_path / "a.jsonl.zst"
    file.write_bytes(packed("zstd"))
    with pytest.raises(DataError, match=r"pip install 'difflm\[data\]'"), open_stream(file):
        pass
