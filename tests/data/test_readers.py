"""JSONL, a JSON array, CSV and plain text: the same documents, errors with their line, one record in memory."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.data import readers
from difflm.data.documents import Document
from difflm.data.readers import read_csv, read_json, read_jsonl, read_text
from difflm.data.records import Fields
from difflm.errors import DataError

Reader = Callable[[Path, Fields], Iterator[Document]]
texts = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=1, max_size=6
)


@given(texts.map(lambda each: [text for text in each if text.strip()]).filter(bool), st.sampled_from([7, 64, 1 << 18]))
@settings(max_examples=50)
def test_every_format_gives_the_same_documents(
    tmp_path_factory: pytest.TempPathFactory, given_texts: list[str], chunk: int
) -> None:
    folder = tmp_path_factory.mktemp("formats")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in given_texts))
    records = [{"id": [1, {"a": '"}{'}], "text": text} for text in given_texts]
    (folder / "a.json").write_text(json.dumps(records, ensure_ascii=False, indent=2), encoding="utf-8")
    table = io.StringIO()
    csv.writer(table).writerows([("n", "text"), *((n, text) for n, text in enumerate(given_texts))])
    (folder / "a.csv").write_bytes(table.getvalue().encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_CHUNK", chunk)
        for reader, name in ((read_jsonl, "a.jsonl"), (read_json, "a.json"), (read_csv, "a.csv")):
            assert [document.text for document in reader(folder / name, Fields())] == given_texts, name


def failure(reader: Reader, file: Path, content: str | bytes) -> str:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        list(reader(file, Fields()))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(file))
    return message.removeprefix(str(file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "x"},\n {"text": "y"},\n 3]', ":3: expected an object in the array, found b'3'"),
        ('[\n{"text": "x"},\n{"txt": "y"}]', ":3: field 'text' is missing, found 'txt'"),
        ('[{"text": "x"}\n{"text": "y"}]', ":2: not valid JSON (expected ',' or ']'"),
        ('[{"text": "x"},\n', ":2: not valid JSON (the array ends early)"),
        ('[{"text": "x"},\n{"text": "y"', ":2: not valid JSON (the array ends early)"),
        ('[{"text": "x"},]', ":1: not valid JSON (a comma before the end of the array)"),
        ('[{"text": "x"}] more', ":1: not valid JSON (something stands behind the array)"),
        ('[{"text": x}]', ":1: not valid JSON"),
        ("[]", ": the file is empty; the JSON array holds no object"),
        ('{"text": "x"}', ":1: not a JSON array; expected '['"),
    ],
)
def test_a_bad_array_is_named_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    assert failure(read_json, tmp_path / "a.json", content).startswith(message)


def test_where_of_an_array_is_the_line_of_the_object(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('\n[{"text":\n "x"}, {"text": "y"},\n\n{"text": "z"}]\n')
    assert [document.where for document in read_json(file, Fields())] == [f"{file}:2", f"{file}:3", f"{file}:5"]


def test_an_object_that_never_ends_is_not_read_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "RECORD_BYTES", 1 << 20)
    assert "an object of more than 1 MiB" in failure(read_json, tmp_path / "a.json", '[{"text": "' + "x" * (2 << 20))


def test_csv_cells_may_have_lines_and_rows_are_named_by_their_first(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('prompt;n;completion\n"a;\nb";1;c\n\nd;2;"e ""f"""\n')
    assert list(read_csv(file, Fields())) == [
        Document(prompt="a;\nb", completion="c", where=f"{file}:2"),
        Document(prompt="d", completion='e "f"', where=f"{file}:5"),
    ]


def test_tables_hold_alpaca_and_pairs_of_texts(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("instruction,input,output,id\ni,x,o,1\nj,,p,2\n")
    first, second = read_csv(file, Fields())
    assert first.chat is not None
    assert [message["content"] for message in first.chat.messages] == ["i\nx", "o"]
    assert second.chat is not None
    assert [message["content"] for message in second.chat.messages] == ["j", "p"]
    file.write_text("prompt;chosen;rejected\nq;a;b\n")
    (pair,) = read_csv(file, Fields())
    assert pair.rejected == Document(prompt="q", completion="b", where=f"{file}:2")


def test_a_cell_may_be_longer_than_the_default_of_the_csv_module(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text,n\n" + "x" * 200_000 + ",1\n")
    limit = csv.field_size_limit()
    assert [len(document.text or "") for document in read_csv(file, Fields())] == [200_000]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,n\nx,1\ny\n", ":3: 1 cells in a row, 2 in the header"),
        ('text,n\nx,1\n"y,2\n', ":3: not valid CSV"),
        ("text,n\nx,1\n  ,2\n", ":3: field 'text' is empty"),
        ("label,n\nx,1\n", ":1: field 'text' is missing, found 'label', 'n'"),
        ("text,text\nx,1\n", ":1: a column name stands twice"),
        ("input_ids,n\n1,1\n", ":1: column 'input_ids' cannot be read from CSV"),
        ("text,n\n", ": the file is empty; CSV needs rows"),
    ],
)
def test_a_bad_table_is_named_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    assert failure(read_csv, tmp_path / "a.csv", content).startswith(message)


def test_a_very_long_text_comes_in_pieces_that_end_at_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "TEXT_PIECE_BYTES", 100)
    whole = "".join(f"line {number}: caf\u00e9 \u2603\n" for number in range(40)) + "x\u2603" * 90 + "\nend"
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbf" + whole.encode())
    pieces = list(read_text(file))
    assert "".join(piece.text or "" for piece in pieces) == whole
    assert [piece.complete for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert len(pieces) > 8
    assert all(len((piece.text or "").encode()) <= 220 for piece in pieces)
    assert (pieces[0].text or "").endswith("\n")


def test_white_space_behind_the_last_piece_still_ends_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "TEXT_PIECE_BYTES", 10)
    (tmp_path / "a.txt").write_text("x" * 9 + "\n \n")
    assert [(each.text, each.complete) for each in read_text(tmp_path / "a.txt")] == [
        ("x" * 9 + "\n", False),
        (" \n", True),
    ]


def test_bad_bytes_of_a_text_are_placed_over_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "TEXT_PIECE_BYTES", 10)

    def read(file: Path, _: Fields) -> Iterator[Document]:
        return read_text(file)

    assert "byte 0xff at offset 25" in failure(read, tmp_path / "a.txt", b"x" * 25 + b"\xff" + b"y" * 30)
    assert "byte 0xe2 at offset 14" in failure(read, tmp_path / "b.txt", b"x" * 14 + b"\xe2\x98")
    assert "zero byte at offset 25" in failure(read, tmp_path / "c.txt", b"x" * 25 + b"\0" + b"y" * 30)
