"""`difflm bench speed`: the report, one JSON document as the last line, and the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from difflm.bench import speed
from difflm.cli.main import run


def test_the_report_and_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def measured(settings: Any, output: Path, *, fresh: bool, say: Any) -> dict[str, Any]:
        asked.append((settings, output, fresh))
        say("a case: 1 s")
        machine = {"processor": "P", "cores": 2, "torch": "t", "transformers": "h", "commit": "c"}
        plain = {"model": settings.model, "prompt": 64, "repeats": 1, "rows": [], "lengths": [], "batches": []}
        return {"benchmark": "speed", "settings": plain, "environment": machine, "cases": {}}

    monkeypatch.setattr(speed, "bench_speed", measured)
    target = tmp_path / "2026-speed"
    words = ["--output", str(target), "--precision", "int8", "--threads", "1", "--length", "64", "--batch", "4"]
    assert run(["bench", "speed", "tiny-llada2", *words, "--repeats", "1", "--llama-python", "py", "--fresh"]) == 0
    settings, output, fresh = asked[0]
    assert (settings.model, settings.precisions, settings.threads) == ("tiny-llada2", ("int8",), (1,))
    assert (settings.lengths, settings.batches, settings.repeats, settings.llama_python) == ((64,), (4,), 1, "py")
    assert (output, fresh) == (tmp_path / "2026-speed.jsonl", True)
    printed = capsys.readouterr()
    assert printed.err.splitlines() == ["a case: 1 s"]
    assert json.loads(printed.out.splitlines()[-1]) == json.loads((tmp_path / "2026-speed.json").read_text())
    assert (tmp_path / "2026-speed.md").read_text().startswith("# Speed of decoding: tiny-llada2")


def test_the_output_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "speed"]) == 2
    assert "--output" in capsys.readouterr().err
