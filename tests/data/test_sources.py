"""Reading JSONL and plain text, and the validation split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.data import Document, check_disjoint, list_files, read_documents, split_validation
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
        ('{"messages": [], "text": "x"}', ("'messages'", "format that is not read here")),
        ('{"text": 3}', ("'text' is a number (3)", "must be a string")),
        ('{"text": null}', ("'text' is null",)),
        ('{"text": true}', ("'text' is a boolean (true)",)),
        ('{"prompt": [{"role": "user"}], "completion": "y"}', ("'prompt' is a list",)),
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
    assert "no file given" in failure([])


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "x")
    assert "twice" in failure([tmp_path, file])


def test_unknown_format_is_refused(tmp_path: Path) -> None:
    assert "'orc' is unknown" in failure(write(tmp_path / "a.txt", "x"), format="orc")


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5))
@settings(max_examples=30)
def test_jsonl_round_trip(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    file = tmp_path_factory.mktemp("round") / "a.jsonl"
    write(file, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    assert [document.text for document in read_documents(file)] == texts


# --- validation split -------------------------------------------------------------------------------------------


def documents(count: int) -> list[Document]:
    return [Document(text=f"document {index}", where=f"f:{index}") for index in range(count)]


def test_split_is_a_partition_of_about_the_right_size() -> None:
    given_documents = documents(2000)
    training, validation = split_validation(given_documents, fraction=0.1, seed=0)
    assert sorted(d.where for d in training + validation) == sorted(d.where for d in given_documents)
    assert 150 < len(validation) < 250
    check_disjoint(training, validation)


def test_split_does_not_depend_on_order_or_neighbours() -> None:
    _, validation = split_validation(documents(200), fraction=0.2, seed=3)
    _, reversed_validation = split_validation(documents(200)[::-1], fraction=0.2, seed=3)
    assert {d.text for d in validation} == {d.text for d in reversed_validation}
    _, fewer = split_validation(documents(100), fraction=0.2, seed=3)
    assert {d.text for d in fewer} == {d.text for d in validation} & {d.text for d in documents(100)}
    assert [d.where for d in validation] == [d.where for d in documents(200) if d in validation]


def test_seed_changes_the_split() -> None:
    one, two = (split_validation(documents(200), fraction=0.2, seed=seed)[1] for seed in (0, 1))
    assert {d.text for d in one} != {d.text for d in two}


@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=20), st.floats(0.01, 0.99), st.integers(0, 5))
@settings(max_examples=60)
def test_copies_land_on_one_side_and_no_side_is_empty(texts: list[str], fraction: float, seed: int) -> None:
    given_documents = [Document(text=text, where=str(index)) for index, text in enumerate(texts)]
    if len(set(texts)) < 2:
        with pytest.raises(DataError, match="cannot be split"):
            split_validation(given_documents, fraction=fraction, seed=seed)
        return
    training, validation = split_validation(given_documents, fraction=fraction, seed=seed)
    assert training
    assert validation
    assert not {d.text for d in training} & {d.text for d in validation}


def test_no_validation_asked_for() -> None:
    assert split_validation(documents(1), fraction=0.0, seed=0) == (documents(1), [])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(DataError, match="out of range"):
        split_validation(documents(3), fraction=fraction, seed=0)


def test_hash_keeps_prompt_and_completion_apart() -> None:
    one = Document(prompt="ab", completion="c")
    assert one.content_hash != Document(prompt="a", completion="bc").content_hash
    assert one.content_hash != Document(text="abc").content_hash
    assert one.content_hash == Document(prompt="ab", completion="c", where="elsewhere").content_hash


def test_overlap_with_a_validation_file_is_refused() -> None:
    with pytest.raises(DataError, match=r"v:9: this validation document is also a training document \(f:1\)"):
        check_disjoint(documents(3), [Document(text="document 1", where="v:9")])
