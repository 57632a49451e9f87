"""The worker that runs llama.cpp: a line in, a line out; every prompt from an empty cache."""

from __future__ import annotations

import io
import json
import sys
from types import ModuleType

import pytest

from difflm.bench import llama_worker
from tests.bench.test_speed_systems import FAKE


def test_lines_in_and_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = ModuleType("llama_cpp")
    exec(FAKE, module.__dict__)
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    asked = {"prompts": [[1], [2, 3]], "new_tokens": 2}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(asked) + "\n" + json.dumps(asked) + "\n"))
    llama_worker.main("model.gguf", 1)
    first, *answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert first == {"version": "0.0-fake"}
    assert [each["answers"] for each in answers] == [[[2, 3], [6, 7]]] * 2
    assert all(each["seconds"] > 0 for each in answers)
