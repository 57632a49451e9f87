"""What a file holds is concluded from its content, reported, and can be forced."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from difflm.data.formats import Found, detect, listed
from difflm.data.records import Fields
from difflm.errors import DataError


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("a.jsonl", '{"text": "x"}\n', "jsonl"),
        ("a.json", '{"text": "x"}\n{"text": "y"}\n', "jsonl"),
        ("a.json", '[\n {"text": "x"}]', "json"),
        ("a.json", "[]", "json"),
        ("a.jsonl", '[{"text": "x"}]', "json"),
        ("a.txt", '{"text": "x"}\n', "jsonl"),
        ("a.txt", '[{"text": "x"}]', "json"),
        ("a.txt", '{"unknown": "x"}\n', "text"),
        ("a.txt", "{ this is prose", "text"),
        ("a.txt", "[1] a reference", "text"),
        ("a.txt", "text,label\nx,1", "text"),
        ("a.md", "# Title", "text"),
        ("a.csv", "text,label\nx,1\n", "csv"),
        ("a.csv", '{"text": "x"}\n', "jsonl"),
        ("a.tsv", "prompt\tcompletion\nx\ty\n", "csv"),
        ("a.dat", "label;text\n1;x\n", "csv"),
        ("a.dat", '{"prompt": "x", "completion": "y"}\n', "jsonl"),
        ("a", '\ufeff  [ {"text": "x"} ]', "json"),
        ("a.jsonl", '{"text": "' + "x" * 100_000 + '"}\n', "jsonl"),
        ("a.txt", '{"text": "' + "x" * 100_000 + '"}\n', "jsonl"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_content_decides_before_the_name(tmp_path: Path, name: str, content: str, format: str, packed: bool) -> None:
    file = tmp_path / (name + ".gz" * packed)
    file.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    found = detect(file)
    assert (found.format, found.compression) == (format, "gzip" if packed else "")


def test_a_conclusion_is_one_line_with_its_reason(tmp_path: Path) -> None:
    file = tmp_path / "a.json.gz"
    file.write_bytes(gzip.compress(b'[{"text": "x"}]'))
    assert str(detect(file)) == f"{file}: json, gzip (begins with an array of objects)"
    told = Found(file=file, format="text", compression="gzip", reason="as told")
    assert detect(file, format="text") == told


def test_the_text_field_counts_in_the_conclusion(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text('{"content": "x"}\n')
    assert detect(file).format == "text"
    assert detect(file, fields=Fields(text="content")).format == "jsonl"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.dat", b"some words\n", "cannot tell the format from the suffix '.dat'"),
        ("a.json", b"text\n", "named .json, but it begins with 'text"),
        ("a.parquet", b"text\n", "named like parquet, but it does not begin like it"),
        ("a.arrow", b'{"text": "x"}', "named like arrow"),
        ("a.txt", b"x\0y", "binary file (zero byte at offset 1)"),
        ("a.txt", b"", "the file is empty (0 bytes)"),
    ],
)
def test_what_could_be_anything_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        detect(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)


def test_many_files_are_listed_in_a_few_lines() -> None:
    found = [Found(file=Path(f"{name}.csv"), format="csv", compression="", reason="as told") for name in range(9)]
    assert listed(found[:3]) == [str(each) for each in found[:3]]
    assert listed(found)[3:] == ["and 6 more files: csv"]
