"""Progress of a copy: bytes, files and notes, on a terminal and away from one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from difflm.display.copying import CopyLines, CopyProgress, copy_observer


def test_a_bar_shows_bytes_and_files() -> None:
    stream = io.StringIO()
    bar = CopyProgress(Console(file=stream, force_terminal=True, width=120))
    bar.phase("hashing the source", size=4_000_000, files=2)
    bar.advance(4_000_000, files=2)
    bar.phase("writing", size=8_000_000, files=4, done=2_000_000, files_done=1)
    bar.note("model-00002: damaged \x1b[31m; it is written again")
    bar.advance(2_000_000)
    bar.advance(0, files=1)
    bar.close()
    text = stream.getvalue()
    assert "hashing the source" in text
    assert "4.0/8.0 MB" in text
    assert "file 2/4" in text
    assert "\x1b[31m" not in text, "names cannot steer the terminal"


def test_lines_come_at_most_one_per_interval_and_notes_always() -> None:
    stream, now = io.StringIO(), [0.0]
    lines = CopyLines(stream, interval=10.0, clock=lambda: now[0])
    lines.phase("writing", size=3_000_000_000, files=3, done=1_000_000_000, files_done=1)
    for second in range(25):
        now[0] = second
        lines.advance(50_000_000, files=second == 15)
    lines.note("said")
    lines.close()
    assert stream.getvalue().splitlines() == [
        "writing: 1.6/3.0 GB, file 1/3",
        "writing: 2.0/3.0 GB, file 2/3",
        "said",
    ]


def test_away_from_a_terminal_a_short_copy_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with copy_observer() as observer:
        observer.phase("writing", size=10, files=1)
        observer.advance(10, files=1)
    assert capsys.readouterr().err == ""


def test_the_bar_goes_when_the_copy_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(CopyLines, "close", lambda lines: closed.append(True))
    with pytest.raises(KeyboardInterrupt), copy_observer(io.StringIO()):
        raise KeyboardInterrupt
    assert closed == [True]
