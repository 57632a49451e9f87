"""The GPU check's frame: failures stay lines of the table, exit codes, packages that are missing, no device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from difflm.bench import gpu_check, gpu_suite
from difflm.bench.checks import NotRunError
from difflm.bench.gpu_check import main

ROOT = Path(__file__).parents[2]


def fine() -> tuple[str, dict[str, Any]]:
    return "as it should be", {"figure": 1}


def broken() -> tuple[str, dict[str, Any]]:
    raise RuntimeError("no kernel for this")


def absent() -> tuple[str, dict[str, Any]]:
    raise NotRunError("needs the package x")


def checked(monkeypatch: pytest.MonkeyPatch, *checks: Any) -> None:
    monkeypatch.setattr(gpu_suite, "checks_for", lambda *args, **options: [(each.__name__, each) for each in checks])


def test_the_table_then_one_json_document(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checked(monkeypatch, fine, broken, absent)
    path = tmp_path / "new" / "gpu.json"
    assert main(["--device", "cpu", "--output", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    document = json.loads(lines[-1])
    assert document == json.loads(path.read_text())
    assert [each["status"] for each in document["checks"]] == ["passed", "failed", "not run"]
    assert document["environment"]["torch"] == torch.__version__
    assert any(line.startswith("broken") and "no kernel for this" in line for line in lines)
    assert lines[-2].startswith("1 passed, 1 failed, 1 not run")
    checked(monkeypatch, fine, absent)
    assert main(["--device", "cpu"]) == 0


def test_without_a_device_or_a_package_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert "sees no CUDA device" in capsys.readouterr().err
    monkeypatch.setattr(gpu_check, "REQUIRED", {"torch": "torch", "no_such_module": "the-package"})
    assert main(["--device", "cpu"]) == 2
    assert "needs the package the-package" in capsys.readouterr().err


def test_all_but_the_trainer_needs_no_pydantic() -> None:
    """On a machine that has torch, numpy and safetensors only."""
    code = """
import sys
for name in ("pydantic", "yaml", "transformers", "tokenizers", "click", "rich", "matplotlib"):
    sys.modules[name] = None
import torch
from difflm.bench import gpu_suite
from difflm.bench.checks import run_check
from functools import partial
torch.set_num_threads(1)
device = torch.device("cpu")
for name, check in gpu_suite.checks_for(device, lengths=(32,), quick=True):
    if name.startswith(("training run, bfloat16", "trainer", "decoding", "loss and gradients: portable")):
        print(run_check(name, check).status, name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines() == [
        "passed loss and gradients: portable",
        "passed training run, bfloat16",
        "passed decoding against CPU",
        "not run trainer: convert, train, resume",
    ], done.stderr


@pytest.mark.slow
def test_the_whole_check_passes_on_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--quick", "--lengths", "128"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {each["status"] for each in document["checks"]} == {"passed"}
