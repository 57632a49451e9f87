"""`difflm doctor`: its exit code says whether something is broken (what it finds: tests/test_doctor.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from difflm.cli.main import run


def test_the_exit_code_is_one_where_something_does_not_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--output", str(tmp_path)]) == 0
    assert "attention" in capsys.readouterr().out
    assert run(["doctor", "--output", str(tmp_path / "absent")]) == 1
