"""Cases of the speed benchmark: turns, what is left out, the time inside modules, figures that fit together."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from difflm.bench import speed_cases as cases
from difflm.bench.speed_cases import Bench, Watch
from difflm.bench.speed_systems import AR_SYSTEMS, ENGINE, LLAMA, LOOP, NEXT_TOKEN, TINY_LLADA2, TRANSFORMERS, Subject
from tests.bench.test_speed_systems import FAKE
from tests.checkpoints.tiny import hf_folder
from tests.checkpoints.tiny_gguf import write_gguf
from tests.products import needs_products


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def bench(name: str = TINY_LLADA2, *, repeats: int = 2, patience: float = 60.0) -> Bench:
    return Bench(Subject(name), (1,), repeats, patience)


def test_systems_take_turns_and_patience_ends() -> None:
    order: list[str] = []

    def work(name: str) -> tuple[float, None]:
        order.append(name)
        return float(len(order)), None

    found = bench(repeats=3).turns({"a": lambda: work("a"), "b": lambda: work("b")})
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}
    assert bench(repeats=3, patience=-1.0).turns({"a": lambda: work("a")}) == {"a": [7.0]}


def test_time_inside_modules() -> None:
    inner, outer = nn.Linear(64, 64), nn.Linear(64, 64)
    with Watch(inner) as watch:
        outer(torch.ones(8, 64))
        assert watch.seconds == 0.0
        inner(torch.ones(8, 64))
        first = watch.seconds
        assert first > 0.0
        inner(torch.ones(8, 64))
        assert watch.seconds > first
    inner(torch.ones(8, 64))
    assert not inner._forward_hooks
    assert not inner._forward_pre_hooks


@needs_products
def test_trials_on_a_gguf_file_with_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hf_folder(tmp_path / "parent", "llama", max_position_embeddings=256)
    write_gguf(tmp_path / "model.gguf", model)
    (tmp_path / "llama_cpp.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = bench(str(tmp_path / "model.gguf"), repeats=1)
    try:
        found = cases.trials(made, ["float32", "int8"], 8, 32, sys.executable)
        assert set(found["best"]) == {ENGINE, LOOP, *AR_SYSTEMS}
        assert found["left_out"] == {}
        assert found["llama_cpp"] == "0.0-fake"
        assert [each["precision"] for each in found["tried"] if each["system"] == TRANSFORMERS] == ["float32"]
        assert found["best"][LLAMA]["precision"] == "file"
        systems = cases.schedules(made, "int8", found["best"], (8, 32), 32, 64)["systems"]
        assert {name: each["tokens"] for name, each in systems.items()} == dict.fromkeys(
            ("S=8", "S=32", *AR_SYSTEMS), 64
        )
        assert (systems["S=8"]["forwards"], systems["S=32"]["forwards"]) == (1 + 2 * 8, 1 + 2 * 32)
    finally:
        made.close()


def test_what_cannot_be_tried_is_named(tmp_path: Path) -> None:
    found = cases.trials(bench(repeats=1), ["float32"], 8, 32, None)
    assert set(found["best"]) == {ENGINE, LOOP, NEXT_TOKEN}
    assert "no class" in found["left_out"][TRANSFORMERS]
    assert "GGUF" in found["left_out"][LLAMA]
    model = hf_folder(tmp_path / "parent", "llama", max_position_embeddings=256)
    write_gguf(tmp_path / "model.gguf", model)
    found = cases.trials(bench(str(tmp_path / "model.gguf"), repeats=1), ["float32"], 8, 32, "no-such-python")
    assert found["left_out"] == {
        LLAMA: "ConfigError: --llama-python: no-such-python does not start (No such file or directory)"
    }


def test_bare_forwards_are_as_many_as_the_engine_s() -> None:
    best = {ENGINE: {"precision": "float32", "threads": 1}}
    found = cases.batch(bench(repeats=1), best, 8, 32, 3)
    assert found["forwards"] == {"prefill": 1, "denoise": 15, "commit and denoise": 1}
    assert found["tokens"] == 3 * 64
    assert len(found["seconds"]) == len(found["bare_seconds"]) == 1
