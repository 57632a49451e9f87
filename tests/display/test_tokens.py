"""Tokens by role and the summary of `prepare`: the same marks with and without colours."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from difflm.data.formats import Found
from difflm.display import tokens as display
from difflm.display.tokens import escaped, row_text, show_rows, show_summary
from difflm.training.prepare import Example, PrepareSummary, SourceSummary
from difflm.training.preview import Role, ShownRow, ShownToken


def row(*tokens: tuple[str, Role, bool, int]) -> ShownRow:
    shown = tuple(
        ShownToken(text=text, role=role, masked=masked, document=number) for text, role, masked, number in tokens
    )
    return ShownRow(source="f.jsonl", number=3, tokens=shown, documents_read=9)


ROW = row(
    ("How", "prompt", False, 0),
    ("?\n", "prompt", False, 0),
    ("fi", "trainable", False, 0),
    ("ne", "trainable", True, 0),
    ("!", "trainable", True, 0),
    ("</s>", "eos", False, 0),
    ("</s>", "fill", True, 0),
    ("</s>", "fill", False, 0),
    ("x", "trainable", False, 1),
    ("</s>", "eos", True, 1),
    ("</s>", "padding", False, -1),
    ("</s>", "padding", False, -1),
)


def test_marks_stand_without_colours() -> None:
    stream = io.StringIO()
    show_rows([ROW], mask_rate=0.5, stream=stream)
    text = stream.getvalue()
    assert "\x1b" not in text
    assert text.splitlines()[0].startswith("legend: {prompt}  trainable  [masked at t = 0.5]  <EOS>  <fill> (EOS")
    assert text.splitlines()[2:] == [
        "row 3 of f.jsonl: 10 of 12 positions hold tokens, 8 trainable, 4 masked (packed from the first 9 documents)",
        "  -- document 0, positions 0 to 7",
        r"  {How|?\n}|fi|[ne|!]|<EOS>|[<fill>]|<fill>|",
        "  -- document 1, positions 8 to 9",
        "  x|[<EOS>]|",
        "  -- padding, positions 10 to 11",
        "  ~padding x 2",
        "",
    ]


def test_a_terminal_adds_colours_to_the_same_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(
        display, "_console", lambda _: Console(file=stream, force_terminal=True, width=200, color_system="standard")
    )
    show_rows([ROW], mask_rate=0.5)
    text = stream.getvalue()
    assert "\x1b[36m{How|?\\n}" in text
    assert "\x1b[7;32m[ne|!]" in text
    plain = io.StringIO()
    Console(file=plain, width=200).print(row_text(ROW))
    without = text
    for code in ("0", "1", "2", "32", "35", "36", "7;32", "7;35", "1;35", "1;7;35", "7;1;35"):
        without = without.replace(f"\x1b[{code}m", "")
    assert plain.getvalue() in without


def test_text_of_a_file_cannot_reach_the_terminal() -> None:
    assert escaped("a\tb\\\r\x1b[31m") == "a\\tb\\\\\\r\ufffd[31m"


def test_the_summary_names_every_count() -> None:
    found = Found(file=Path("a.jsonl.gz"), format="jsonl", compression="gzip", reason="as told")
    source = SourceSummary(
        path="a.jsonl.gz",
        weight=0.5,
        files=(found,),
        kind="text",
        documents=1200,
        train_documents=1100,
        validation_documents=90,
        tokens=54321,
        trainable=54320,
        validation_tokens=4321,
    )
    summary = PrepareSummary(
        folder=Path("out"),
        sources=(source,),
        exact_duplicates=10,
        dropped_duplicates=7,
        near_duplicates=33,
        near_threshold=0.8,
        examples=(
            Example(where="a:2", first="a:1", similarity=1.0, exact=True),
            Example(where="a:9", first="a:4", similarity=0.84, exact=False),
            Example(where="b:9", first="b:4", similarity=1.0, exact=False),
        ),
        without_eos=5,
        row_length=64,
        split_texts=21,
        overlong_answers=3,
        overlong_tokens=400,
        row_tokens=640,
        rows_best_fit=11,
        rows_greedy=20,
        seconds=1.25,
    )
    stream = io.StringIO()
    show_summary(summary, stream=stream)
    text = " ".join(stream.getvalue().split())
    for part in (
        "a.jsonl.gz 0.5 jsonl gzip: text 1,200 1,100 54,321 54,320 90 4,321",
        "exact duplicates 10 (7 left out)",
        "near duplicates (>= 0.8) 33",
        "rows of 64: texts that are split 21",
        "rows of 64: answers that are dropped 3 (400 tokens)",
        "rows of 64: best_fit 11 rows, fill 90.9%",
        "rows of 64: greedy 20 rows, fill 50.0%",
        "rows of ids without EOS 5",
        "written to out",
        "a:2 repeats a:1 a:9 resembles (0.84) a:4 b:9 resembles (1.00) b:4",
    ):
        assert part in text
