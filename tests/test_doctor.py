"""What the doctor finds is what is there: right and wrong arithmetic, too many threads, full disks, absent packages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from difflm import doctor
from difflm.cli.main import run
from difflm.doctor import (
    Finding,
    backends,
    cpu_quota,
    dtypes,
    healthy,
    hub,
    memory_and_disk,
    processor,
    versions,
    waiting,
)


def named(found: list[Finding], name: str) -> Finding:
    return next(each for each in found if each.name == name)


def test_threads_that_spin_on_a_busy_machine_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "usable_cores", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)

    def verdict(environ: dict[str, str], load: float | None) -> str:
        (found,) = waiting(environ, load=load)
        assert bool(found.advice) == (found.verdict == "note")
        return found.verdict

    assert verdict({}, 9.0) == verdict({"OMP_WAIT_POLICY": "active"}, 9.0) == "note"
    assert verdict({}, 3.0) == verdict({}, None) == "ok"
    assert verdict({"OMP_WAIT_POLICY": "PASSIVE"}, 9.0) == verdict({"GOMP_SPINCOUNT": "0"}, 9.0) == "ok"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert verdict({}, 9.0) == "ok", "a single thread waits for nobody"


def test_every_backend_of_the_cpu_works_and_equals_the_reference() -> None:
    found = list(backends("cpu"))
    assert {each.name.split()[0] for each in found} == {"split", "portable", "flex", "dense"}
    assert all(each.value.startswith("works") and each.verdict == "ok" for each in found)
    assert "no gradients" in named(found, "flex on cpu").value


@pytest.mark.parametrize("wrong", ["forward", "backward"])
def test_a_backend_that_computes_something_else_is_a_problem(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    real = doctor.attention_for

    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            return 1.005 * grad

    def broken(*arguments: Any, backend: str, **settings: Any) -> Callable[..., Tensor]:
        attend = real(*arguments, backend=backend, **settings)  # type: ignore[arg-type]
        if backend != "split":
            return attend
        if wrong == "forward":
            return lambda layer, query, key, value: 1.005 * attend(layer, query, key, value)
        return lambda layer, query, key, value: attend(layer, query, key, Scaled.apply(value))

    monkeypatch.setattr(doctor, "attention_for", broken)
    found = list(backends("cpu"))
    assert named(found, "split on cpu").verdict == "problem"
    assert named(found, "split on cpu").value.startswith("wrong")
    assert named(found, "portable on cpu").verdict == "ok"
    assert not healthy(found)


def test_a_backend_that_is_refused_is_no_problem() -> None:
    found = list(backends("meta"))
    assert named(found, "flex on meta").value.startswith("not here")


def test_both_dtypes_multiply_here_and_a_wrong_product_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [each.verdict for each in dtypes("cpu")] in (["ok", "ok"], ["ok", "note"])
    monkeypatch.setattr(doctor, "_middle_time", lambda left, right: 1.0 if left.dtype == torch.float32 else 3.0)
    assert "dtype: float32" in list(dtypes("cpu"))[1].advice
    real = Tensor.__matmul__
    monkeypatch.setattr(Tensor, "__matmul__", lambda a, b: real(a, b) * (1.01 if a.dtype == torch.float32 else 1.0))
    assert next(dtypes("cpu")).verdict == "problem"


def test_more_threads_than_cores_are_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "usable_cores", lambda: 8)
    monkeypatch.setattr(doctor, "cpu_quota", lambda: 2.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    found = list(processor({"OMP_NUM_THREADS": "8"}))
    assert named(found, "threads").verdict == "note"
    assert "OMP_NUM_THREADS=2" in named(found, "threads").advice
    assert "limited to 2 by the container" in named(found, "cores").value
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert named(list(processor({})), "threads").verdict == "ok"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert "1 of the cores stay idle" in named(list(processor({"OMP_NUM_THREADS": "1"})), "threads").advice
    limit = tmp_path / "cpu.max"
    limit.write_text("150000 100000\n")
    assert cpu_quota(limit) == 1.5
    limit.write_text("max 100000\n")
    assert cpu_quota(limit) is None
    assert cpu_quota(tmp_path / "absent") is None


def test_old_and_absent_packages_are_problems_and_extras_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"torch": "2.9.1+cpu", "transformers": "6.0.0", "safetensors": "0.10.1"}
    monkeypatch.setattr(doctor, "_version", known.get)
    found = list(versions())
    assert named(found, "torch").verdict == "problem"
    assert "torch>=2.11" in named(found, "torch").advice
    assert named(found, "safetensors").verdict == "ok", "0.10 is newer than 0.6"
    assert named(found, "numpy").verdict == "problem"
    assert named(found, "wandb").verdict == "ok"
    assert "difflm[wandb]" in named(found, "wandb").advice


def test_disks_that_are_full_or_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert named(list(memory_and_disk(tmp_path / "absent")), "runs").verdict == "problem"
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2**30))
    assert named(list(memory_and_disk(tmp_path)), "runs").verdict == "note"


def test_tokens_are_never_read_aloud() -> None:
    found = list(hub({"HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "1", "HF_HOME": "/there"}))
    assert "offline" in named(found, "hugging face").value
    assert named(found, "cache").value == "/there"
    assert not any("secret" in each.value for each in found)


def test_the_command_prints_a_table_or_json_and_tells_by_its_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run(["doctor", "--output", str(tmp_path), "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["healthy"]
    assert {each["area"] for each in tree["findings"]} >= {"versions", "processor", "dtypes", "attention", "disk"}
    assert run(["doctor", "--output", str(tmp_path / "absent")]) == 1
    out = capsys.readouterr().out
    assert "cannot be written" in out
    assert "1 problems (x)" in out
