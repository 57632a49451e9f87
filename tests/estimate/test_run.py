"""The whole estimate: consistent with its parts, from names alone, and near what a small run takes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from difflm.errors import ConfigError
from difflm.estimate import run as module
from difflm.estimate.run import estimate, estimate_lines, estimate_tree
from difflm.training.config_io import config_from_tree
from tests.standins import write_parent, write_texts
from tests.training.runs import config_of


def named(model: str, **changes: Any):  # noqa: ANN201
    tree: dict[str, Any] = {
        "model": model, "output": "o", "data": {"paths": ["absent"], "row_length": 256},
        "curriculum": [{"block_size": 32, "tokens": 100_000}],
    }  # fmt: skip
    return config_from_tree({**tree, **changes})


@pytest.mark.parametrize(
    ("changes", "copies"),
    [({}, 1), ({"lora": {"rank": 2}}, 0), ({"lora": {"rank": 2}, "reference": "other"}, 1)],
    ids=["full", "lora", "named"],
)
def test_a_preference_run_holds_its_reference(changes: dict[str, Any], copies: int) -> None:
    changes = dict(changes)
    objective = {"kind": "dpo", **({"reference": changes.pop("reference")} if "reference" in changes else {})}
    found = estimate(named("smollm2-135m", objective=objective, **changes), measured=False)
    assert found.parameters.reference == copies * found.parameters.weights
    assert any(note.startswith("dpo: the forwards of the reference") for note in found.notes)


def test_estimates_need_no_files() -> None:
    found = estimate(named("smollm2-135m"), measured=False)
    tree = estimate_tree(found)
    assert tree["model"]["parameters"] == 134_515_008
    assert tree["memory"]["weights"] == tree["memory"]["gradients"] == 4 * 134_515_008
    assert tree["memory"]["peak"] == max(tree["memory"]["peaks"].values())
    assert tree["time"]["training_seconds"] is None
    assert json.loads(json.dumps(tree)) == tree
    text = "\n".join(estimate_lines(found))
    for part in ("134,515,008 parameters", "196 steps", "fill 100.0% assumed", "allocator  ", "peak", "malloc keeps"):
        assert part in text, text


def test_a_given_rate_gives_a_time_without_measuring() -> None:
    slow, fast = (estimate(named("smollm2-135m"), tflops=each) for each in (1.0, 2.0))
    assert slow.training_seconds == pytest.approx(2 * (fast.training_seconds or 0))
    assert "1 TFLOP/s sustained" in estimate_lines(slow)[-3]


def test_a_device_that_is_not_here_has_memory_but_no_time() -> None:
    found = estimate(named("smollm2-135m", device="cuda", dtype="bfloat16"))
    if found.speed is None:
        assert found.backend == "flex"
        assert (found.process, found.allocator) == (0, 0)
        assert any("--tflops" in note for note in found.notes)


def test_bfloat16_has_masters_and_less_activations() -> None:
    wide, narrow = (estimate(named("smollm2-135m", dtype=each), measured=False) for each in ("float32", "bfloat16"))
    assert narrow.parameters.masters == 4 * narrow.parameters.parameters
    assert narrow.step.activations < 0.65 * wide.step.activations
    saving = estimate(named("smollm2-135m", activation_checkpointing=True), measured=False)
    assert saving.peak < wide.peak


def test_kernels_of_experts_in_bfloat16_are_memory_too() -> None:
    moe = ({"model": "llada2.0-mini", "dtype": dtype} for dtype in ("bfloat16", "float32"))
    narrow, wide = (estimate(named(**each), measured=False) for each in moe)
    assert narrow.process - wide.process == pytest.approx(module.KERNELS, abs=150 * 2**20)
    dense = estimate(named("smollm2-135m", dtype="bfloat16"), measured=False)
    assert narrow.process - dense.process == pytest.approx(module.KERNELS, abs=150 * 2**20)


def test_data_at_hand_gives_the_fill_and_the_validations(files: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(files, tmp_path / "run", validation={"rows": 3, "block_sizes": [4], "every_tokens": 200})
    found = estimate(config, measured=False)
    assert found.workload.measured_fill
    assert found.workload.fill < 1
    assert found.validations == 2 + 3
    assert found.validation_tokens > 0
    assert not config.output.exists()


def test_large_data_is_not_read(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_DATA", 10)
    found = estimate(config_of(files, tmp_path / "run"), measured=False)
    assert not found.workload.measured_fill
    assert any("were not read" in note for note in found.notes)


def test_rows_longer_than_the_context_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(files, tmp_path / "run")
    long = dataclasses.replace(config, data=dataclasses.replace(config.data, row_length=4096))
    with pytest.raises(ConfigError, match=r"train.data.row_length: 4096 exceeds the model's context of 512"):
        estimate(long, measured=False)


@pytest.mark.slow
def test_estimates_are_within_15_percent_of_a_small_run(tmp_path: Path) -> None:
    """Peak memory of a run in a process of its own; times are compared in benchmarks, on an idle machine."""
    from difflm.checkpoints.convert import convert

    convert(write_parent(tmp_path / "parent", layers=6, hidden=192), tmp_path / "model", block_size=8)
    write_texts(tmp_path / "texts.jsonl", documents=400)
    (tmp_path / "run.yaml").write_text("threads: 1\n")
    words = [
        str(tmp_path / "run.yaml"), "--model", str(tmp_path / "model"), "--data", str(tmp_path / "texts.jsonl"),
        "data.row_length=512", "rows_per_batch=4", "curriculum=[{block_size: 8, tokens: 8000}]",
    ]  # fmt: skip

    def call(*arguments: str) -> str:
        command = [sys.executable, "-m", "difflm", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    found = json.loads(call("estimate", *words, "--json"))
    call("train", *words, "--output", str(tmp_path / "run"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["kind"] == "train"]
    assert found["steps"] == pytest.approx(len(trained), abs=1)
    assert found["stages"][0]["mask_share"] == pytest.approx(trained[-1]["mask_ratio"], abs=0.05)
    assert found["memory"]["peak"] == pytest.approx(trained[-1]["memory_bytes"], rel=0.15)
    assert found["time"]["training_seconds"] > 0
