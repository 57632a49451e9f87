"""Files, folders and patterns: which files, in which order, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.data import Document, list_files, read_documents
from difflm.errors import DataError


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def failure(path: Path | list[Path], **options: str) -> str:
    """Return the message of the error, which has to be one line."""
    with pytest.raises(DataError) as caught:
        list(read_documents(path, **options))  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_jsonl_text(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"text": "one", "id": 7}\n\n{"text": "two\\nlines"}\n')
    assert list(read_documents(file)) == [
        Document(text="one", where=f"{file}:1"),
        Document(text="two\nlines", where=f"{file}:3"),
    ]


def test_jsonl_prompt_and_completion(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"completion": "b", "prompt": "a"}\r\n{"prompt": "", "completion": "c"}')
    assert list(read_documents(file)) == [
        Document(prompt="a", completion="b", where=f"{file}:1"),
        Document(prompt="", completion="c", where=f"{file}:2"),
    ]


def test_unescaped_line_separators_do_not_end_a_line(tmp_path: Path) -> None:
    text = "a\u2028b\u0085c\x0bd"
    file = write(tmp_path / "a.jsonl", '{"text": "a\u2028b\u0085c\\u000bd"}\n')
    assert [document.text for document in read_documents(file)] == [text]


def test_plain_text_is_one_document_per_file(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "second\n\nparagraph\r\n")
    write(tmp_path / "a.txt", b"\xef\xbb\xbffirst")
    write(tmp_path / "deep" / "c.md", "third")
    write(tmp_path / "image.png", b"\x89PNG\0")
    write(tmp_path / ".hidden" / "d.txt", "hidden")
    texts = [document.text for document in read_documents(tmp_path)]
    assert texts == ["first", "second\n\nparagraph\n", "third"]


def test_patterns_are_sorted_and_recursive(tmp_path: Path) -> None:
    for name in ("b.txt", "x/a.txt", "c.jsonl"):
        write(tmp_path / name, "text")
    assert list_files(str(tmp_path / "*.txt")) == [tmp_path / "b.txt"]
    assert list_files(str(tmp_path / "**" / "*.txt")) == [tmp_path / "b.txt", tmp_path / "x" / "a.txt"]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a[1].txt", "text")
    write(tmp_path / "a1.txt", "other")
    assert list_files(file) == [file]


def test_format_can_be_forced(tmp_path: Path) -> None:
    file = write(tmp_path / "data.log", '{"text": "x"}\n')
    assert next(read_documents(file)).text == "x", "the content says so"
    assert "use .jsonl" in failure(write(tmp_path / "other.log", "some words\n"))
    assert next(read_documents(file, format="jsonl")).text == "x"
    assert next(read_documents(file, format="text")).text == '{"text": "x"}\n'


def test_format_decides_which_files_of_a_folder_are_data(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"text": "x"}\n')
    write(tmp_path / "b.txt", "y")
    assert [document.text for document in read_documents(tmp_path, format="jsonl")] == ["x"]
    assert [document.text for document in read_documents(tmp_path, format="text")] == ["y"]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{"text": "x"', ("not valid JSON",)),
        ("[" * 100_000, ("not valid JSON",)),
        ("[1, 2]", ("a list ([1, 2])", "not a JSON object")),
        ('"text"', ("a string", "not a JSON object")),
        ("{}", ("'text' is missing", "found no field")),
        ('{"txt": "x"}', ("'text' is missing", "found 'txt'", "is 'txt' a misspelling?")),
        ('{"prompt": "x", "completions": "y"}', ("'completion' is missing", "is 'completions' a misspelling?")),
        ('{"completion": "x"}', ("'prompt' is missing",)),
        ('{"text": "x", "prompt": "y"}', ("'text', 'prompt'", "ambiguous")),
        ('{"messages": [], "text": "x"}', ("'messages', 'text' together are ambiguous", "data.records")),
        ('{"text": 3}', ("'text' is a number (3)", "must be a string")),
        ('{"text": null}', ("'text' is null",)),
        ('{"text": true}', ("'text' is a boolean (true)",)),
        (
            '{"prompt": [{"role": "user"}], "completion": "y"}',
            ("'completion' is a string", "beside a list of messages in 'prompt'"),
        ),
        ('{"text": " \\n"}', ("'text' is empty",)),
        ('{"prompt": "x", "completion": ""}', ("'completion' is empty",)),
        ('{"text": "\\ud800"}', ("surrogate",)),
        (f'{{"text": {"9" * 5000}}}', ("not valid JSON",)),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: str, parts: tuple[str, ...]) -> None:
    good = '{"prompt": "p", "completion": "c"}' if '"prompt"' in line else '{"text": "fine"}'
    file = write(tmp_path / "a.jsonl", f"{good}\n\n{line}\n")
    message = failure(file)
    assert message.startswith(f"{file}:3: ")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.jsonl", b"", "the file is empty"),
        ("a.jsonl", b"\n \n", "the file is empty"),
        ("a.txt", b"", "the file is empty"),
        ("a.txt", b"\n\t ", "the file is empty"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\0\0\0", "binary file (zero byte at offset 8)"),
        ("a.jsonl", b'{"text": "x"}\n\0', "binary file"),
        ("a.txt", b"caf\xe9 noir", "not UTF-8 text (byte 0xe9 at offset 3)"),
        ("a.txt", "x".encode("utf-16"), "binary file"),
        ("a.jsonl.gz", b"\x1f\x8b\x08", "the archive is damaged or ends early"),
    ],
)
def test_bad_file_is_named(tmp_path: Path, name: str, content: bytes, part: str) -> None:
    file = write(tmp_path / name, content)
    message = failure(file)
    assert message.startswith(f"{file}: ")
    assert part in message


def test_invalid_bytes_in_jsonl_name_the_line(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n')
    assert failure(file).startswith(f"{file}:2: not UTF-8 text")


def test_kinds_do_not_mix(tmp_path: Path) -> None:
    text, answer = '{"text": "x"}\n', '{"prompt": "p", "completion": "c"}\n'
    file = write(tmp_path / "mixed.jsonl", text + answer)
    assert failure(file).startswith(f"{file}:2: a prompt + completion document in a file that began with a text")
    first, second = write(tmp_path / "a.txt", "x"), write(tmp_path / "b.jsonl", answer)
    message = failure([first, second])
    assert message.startswith(f"{second}:1: ")
    assert str(first) in message


def test_missing_paths_are_named(tmp_path: Path) -> None:
    assert f"{tmp_path / 'no.txt'}: no such file" in failure(tmp_path / "no.txt")
    assert "no file matches" in failure(tmp_path / "*.txt")
    (tmp_path / "folder").mkdir()
    assert "holds no data file" in failure(tmp_path / "folder")
    (tmp_path / "folder" / "train-000-00000.tokens").write_bytes(b"\0\0")
    assert "folder: token shards without manifest.json; copy the prepared folder again" in failure(tmp_path / "folder")
    assert "no file given" in failure([])


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "x")
    assert "twice" in failure([tmp_path, file])


def test_metadata_of_the_datasets_library_is_no_data(tmp_path: Path) -> None:
    for name in ("dataset_info.json", "state.json", "train/state.json", "train/data.jsonl"):
        write(tmp_path / name, '{"text": "x"}\n')
    assert list_files(tmp_path) == [tmp_path / "train" / "data.jsonl"]


def test_files_of_two_formats_are_refused_with_file_and_line(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"text": "x"}\n')
    other = write(tmp_path / "b.csv", "text,n\nx,1\n")
    assert failure(tmp_path).startswith(f"{other}:1: csv in data that began with jsonl ({tmp_path / 'a.jsonl'})")


def test_what_is_concluded_is_reported_before_the_first_document(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.jsonl", '{"text": "x"}\n') for name in "ab"]
    seen: list[Path] = []
    read = read_documents(files, report=lambda found: seen.append(found.file))
    assert [next(read).where for _ in files] == [f"{file}:1" for file in files]
    assert seen == files


def test_unknown_format_is_refused(tmp_path: Path) -> None:
    assert "'orc' is unknown" in failure(write(tmp_path / "a.txt", "x"), format="orc")


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5))
@settings(max_examples=30)
def test_jsonl_round_trip(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    file = tmp_path_factory.mktemp("round") / "a.jsonl"
    write(file, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    assert [document.text for document in read_documents(file)] == texts
