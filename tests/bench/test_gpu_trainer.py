"""The trainer's run for the GPU check: it learns, and what was lost is computed again."""

from __future__ import annotations

from pathlib import Path

from difflm.bench.gpu_trainer import EOS, trainer_losses, write_parent
from difflm.checkpoints.loading import load_model


def test_the_parent_loads_and_its_tokens_are_bytes(tmp_path: Path) -> None:
    loaded = load_model(write_parent(tmp_path / "parent"))
    assert loaded.encode("ab c") == list(b"ab c")
    assert loaded.decode(loaded.encode("x\xe9 y")) == "x\xe9 y"
    assert loaded.encode(EOS) == [256]


def test_the_run_learns_and_resumes_exactly_on_cpu(tmp_path: Path) -> None:
    whole, resumed = trainer_losses(tmp_path / "run", device="cpu", steps=8)
    assert whole[-1] < 0.8 * whole[0]
    assert resumed == whole
