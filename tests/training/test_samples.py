"""Samples of a run: what is written, and that the run does not notice them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.decode.engine import Engine
from difflm.decode.request import SamplingParams
from difflm.errors import ConfigError
from difflm.plots import read_rows
from difflm.training.samples import Sample, sample_rows, summary_row
from difflm.training.state import checkpoint_folders
from difflm.training.trainer import Trainer
from tests.training.runs import config_of

SAMPLES = {"every_tokens": 200, "prompts": ["1: in the", "2: a word"], "max_new_tokens": 6, "threshold": 0.5}


@dataclass
class Rude:
    """A sampler on the engine that also draws from torch's generator and leaves the model in evaluation mode."""

    seen: list[tuple[bool, torch.dtype, int | None]] = field(default_factory=list)

    def __call__(
        self, loaded: LoadedModel, prompts: Sequence[str], *, block_size: int | None, max_new_tokens: int,
        threshold: float,
    ) -> list[Sample]:  # fmt: skip
        torch.rand(3)
        self.seen.append((loaded.model.training, loaded.model.embedding.weight.dtype, block_size))
        params = SamplingParams(max_new_tokens=max_new_tokens, block_size=block_size, threshold=threshold)
        found = Engine(loaded).generate(prompts, params)
        return [
            Sample(prompt=prompt, text=each.text or "", tokens=each.num_tokens, forwards=each.forwards.denoise)
            for prompt, each in zip(prompts, found, strict=True)
        ]


def without_times(path: Path, kind: str) -> list[dict[str, Any]]:
    volatile = ("seconds", "tokens_per_second", "memory_bytes")
    return [{key: row[key] for key in row if key not in volatile} for row in read_rows(path) if row["kind"] == kind]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_with_samples_is_the_run_without(files: dict[str, Path], tmp_path: Path, dtype: str) -> None:
    plain = config_of(files, tmp_path / "plain", dtype=dtype)
    Trainer(plain).train()
    sampled = config_of(files, tmp_path / "sampled", samples=SAMPLES, dtype=dtype)
    sampler = Rude()
    before = torch.get_rng_state()
    trainer = Trainer(sampled, sampler=sampler)
    trainer.train()
    assert torch.equal(torch.get_rng_state(), before), "torch's generator is as it was"
    assert trainer.model.training
    mine, theirs = (without_times(run.output / "metrics.jsonl", "train") for run in (sampled, plain))
    assert mine == theirs
    one, other = (load_model(checkpoint_folders(run.output)[-1]).model.state_dict() for run in (sampled, plain))
    assert all(torch.equal(one[name], other[name]) for name in one)
    wanted = torch.float32 if dtype == "float32" else torch.bfloat16
    assert set(sampler.seen) == {(False, wanted, 4)}, "evaluation mode, the working weights, the last block size"
    # At the start, when 200, 400 tokens are crossed, and at the end.
    rows = read_rows(sampled.output / "samples.jsonl")
    summaries = [row for row in read_rows(sampled.output / "metrics.jsonl") if row["kind"] == "samples"]
    assert len(summaries) == len(sampler.seen) == 4
    assert len(rows) == 8
    assert [row["prompt"] for row in rows[:2]] == SAMPLES["prompts"]
    for summary, first, second in zip(summaries, rows[::2], rows[1::2], strict=True):
        assert summary["step"] == first["step"] == second["step"]
        forwards = first["forwards"] + second["forwards"]
        assert summary["tokens_per_forward"] == pytest.approx((first["tokens"] + second["tokens"]) / forwards)


def test_resumed_runs_have_each_sample_once(files: dict[str, Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"samples": SAMPLES, "checkpoint": {"every_tokens": 250}}
    whole, part = (config_of(files, tmp_path / name, **options) for name in ("whole", "part"))
    Trainer(whole, sampler=Rude()).train()
    trainer = Trainer(part, sampler=Rude())
    trainer._validate()
    trainer._sample()
    while trainer.state.tokens < 450:
        before = trainer.state.tokens
        trainer.train_step()
        trainer._after_step(before)
    trainer.close()
    Trainer(part, sampler=Rude(), resume="auto").train()
    assert read_rows(part.output / "samples.jsonl") == read_rows(whole.output / "samples.jsonl")


def test_samples_without_a_sampler_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.samples.every_tokens: 200, but .* no sampler; use difflm.train"):
        Trainer(config_of(files, tmp_path / "run", samples=SAMPLES))
    assert not (tmp_path / "run").exists()


def test_tokens_per_forward_are_sums_over_sums() -> None:
    samples = [
        Sample(prompt="a", text="x", tokens=9, forwards=3),
        Sample(prompt="b", text="y", tokens=1, forwards=2),
    ]
    assert [row["tokens_per_forward"] for row in sample_rows(samples)] == [3.0, 0.5]
    assert summary_row(samples) == {"samples": 2, "generated_tokens": 10, "forwards": 5, "tokens_per_forward": 2.0}
    assert Sample(prompt="a", text="", tokens=0, forwards=0).tokens_per_forward == 0.0
