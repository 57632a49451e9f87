"""`bench_train` on a tiny shape: what is measured, paired and left out."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from difflm.bench import train as module
from difflm.bench.train import (
    Setting,
    TrainBench,
    TrainingStep,
    bench_train,
    peak_in_own_process,
    print_peak,
    summarise,
    usable_backends,
)
from difflm.errors import ConfigError, DifflmError
from tests.standins import write_parent


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    parent = write_parent(tmp_path_factory.mktemp("shapes") / "parent")
    return Setting(model=str(parent), attention="auto", length=32, rows=2, documents=2, block_size=8, threads=1)


@pytest.fixture(scope="module")
def result(setting: Setting) -> TrainBench:
    return bench_train(setting, lengths=(32, 48), repeats=2, memory=False)


def test_every_backend_and_length_has_a_row(result: TrainBench) -> None:
    assert [(row.length, row.attention) for row in result.rows] == [
        (length, name) for length in (32, 48) for name in ("split", "portable", "dense")
    ]
    assert list(result.left_out) == ["flex"]
    assert "backward" in result.left_out["flex"]
    assert result.parameters > 0
    for row in result.rows:
        assert row.tokens_per_second == pytest.approx(2 * row.length / row.seconds)
        assert row.ratio_range[0] <= row.ratio <= row.ratio_range[1]
    assert [row.ratio for row in result.rows if row.attention == "dense"] == [1.0, 1.0]


def test_ratios_are_paired_by_repeat(setting: Setting) -> None:
    row = summarise(setting, [1.0, 2.0, 8.0], [2.0, 2.0, 2.0], 5.0)
    assert (row.ratio, row.ratio_range, row.seconds) == (1.0, (0.25, 2.0), 2.0)
    assert row.tokens_per_second == 32.0


def test_a_step_trains_and_backends_share_the_weights(setting: Setting) -> None:
    first = TrainingStep(replace(setting, attention="split", dtype="bfloat16"))
    second = TrainingStep(replace(setting, attention="dense", dtype="bfloat16"), first)
    assert first.working is second.working
    assert first.working.embedding.weight.dtype == torch.bfloat16
    before = first.master.embedding.weight.detach().clone()
    assert first() > 0
    assert not torch.equal(before, first.master.embedding.weight)
    assert first.master.embedding.weight.grad is None


def test_a_case_that_does_not_fit_is_left_out(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    step = TrainingStep.__call__

    def fails(self: TrainingStep) -> float:
        if self.setting.attention == "dense":
            raise torch.OutOfMemoryError
        return step(self)

    monkeypatch.setattr(module.TrainingStep, "__call__", fails)
    found = bench_train(setting, lengths=(32,), repeats=1, memory=False)
    assert [row.attention for row in found.rows] == ["split", "portable"]
    assert found.left_out["dense at length 32"] == "out of memory"
    assert found.rows[-1].ratio == 1.0


def test_refusals(setting: Setting) -> None:
    cases: tuple[tuple[dict[str, Any], dict[str, Any], str], ...] = (
        ({}, {"repeats": 0}, "repeats: 0"),
        ({}, {"lengths": ()}, "one length"),
        ({"dtype": "float16"}, {}, "dtype: 'float16' is not trained in"),
        ({"device": "quantum"}, {}, "device: 'quantum'"),
        ({}, {"lengths": (1024,)}, "length: 1024 exceeds the model's context of 512"),
        ({}, {"backends": ("flex",)}, "backend: 'flex' does not work on cpu"),
    )
    for changes, options, said in cases:
        with pytest.raises(ConfigError, match=said):
            bench_train(replace(setting, **changes), **({"lengths": (32,), "memory": False} | options))
    assert usable_backends(setting, ("dense", "split")) == (("dense", "split"), {})


def test_the_measuring_process_prints_one_number(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    print_peak(json.dumps(asdict(replace(setting, attention="split"))))
    assert float(capsys.readouterr().out) > 50
    with pytest.raises(DifflmError, match=r"memory of split at length 8: .*absent"):
        peak_in_own_process(Setting(model="absent", attention="split", length=8))


def test_activation_checkpointing_takes_less_memory(tmp_path: Path) -> None:
    """Twelve layers on 4 x 1024 positions hold about 300 MiB of activations; recomputed layers hold a tenth."""
    parent = write_parent(tmp_path / "parent", layers=12, hidden=64, context=1024)
    plain = Setting(model=str(parent), attention="split", length=512, rows=4, threads=1)
    peaks = [peak_in_own_process(replace(plain, activation_checkpointing=flag)) for flag in (False, True)]
    assert peaks[1] < peaks[0] - 100
