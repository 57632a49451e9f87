"""`difflm serve`: what is refused before a server is there; tests/serving/test_server.py starts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from difflm.cli.main import run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--policy", "nope"], "policy: 'nope' is unknown"),
        (["--port", "70000"], "70000"),
        (["--max-requests", "0"], "--max-requests"),
        (["--cache-gib", "0"], "--cache-gib"),
        ([], "absent"),
    ],
)
def test_refused(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", str(tmp_path / "absent"), *words]) == 2
    assert message in capsys.readouterr().err
