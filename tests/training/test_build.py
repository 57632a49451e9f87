"""Objects of the maths do what the fields of a configuration say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from difflm.diffusion.noise import Bernoulli, CosineSchedule, ExactCount
from difflm.diffusion.objectives import BlockDiffusion, NextToken
from difflm.errors import ConfigError
from difflm.training.build import annealed_view, objective_of, set_threads
from difflm.training.config import BlockDiffusionConfig, DataConfig, NextTokenConfig, StageConfig, TrainConfig
from difflm.types import Parametrisation

BASE = TrainConfig(
    model=Path("m"),
    output=Path("o"),
    data=DataConfig(paths=(Path("d"),), row_length=64),
    curriculum=(StageConfig(tokens=10, block_size=4),),
)


def test_the_objective_does_what_its_fields_say() -> None:

    shifted = Parametrisation(logit_shift=True, clean_attention="causal")
    assert objective_of(BASE, shifted) == BlockDiffusion(
        block_size=None, noise=ExactCount(), shared=True, parametrisation=shifted
    )
    chosen = BlockDiffusionConfig(
        noise="bernoulli",
        weighting="uniform",
        time_per="sequence",
        schedule="cosine",
        bandwidth=(0.2, 0.7),
        stratified=False,
        complementary=True,
        views=2,
        ar_weight=0.5,
        min_masks=1,
        block_origin="row",
    )
    assert objective_of(dataclasses.replace(BASE, objective=chosen), shifted) == BlockDiffusion(
        block_size=None,
        noise=Bernoulli(schedule=CosineSchedule(), bandwidth=(0.2, 0.7), min_masks=1, stratified=False),
        weighting="uniform",
        time_per="sequence",
        complementary=True,
        views=2,
        shared=True,
        ar_weight=0.5,
        block_origin="row",
        parametrisation=shifted,
    )
    control = dataclasses.replace(BASE, curriculum=(StageConfig(tokens=10),), objective=NextTokenConfig())
    assert objective_of(control, shifted) == NextToken()


def test_without_a_list_of_cores_all_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.delattr("os.sched_getaffinity", raising=False)  # as on macOS
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    set_threads(None)
    set_threads(2)
    assert asked == [3, 2]


@pytest.mark.parametrize(("told", "used"), [("1", 1), (" 4,2", 4), ("0", 3), ("", 3), ("many", 3)])
def test_threads_follow_the_environment_unless_the_run_sets_them(
    told: str, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    set_threads(None)
    set_threads(2)
    assert asked == [used, 2]


def test_the_view_is_annealed_over_the_run_s_first_tokens() -> None:
    config = dataclasses.replace(BASE, objective=BlockDiffusionConfig(annealing_tokens=100))
    assert [annealed_view(config, 4, tokens) for tokens in (0, 50, 100)] == [0, 2, None]
    assert annealed_view(config, None, 50) == 32
    assert annealed_view(BASE, 4, 0) is None
    with pytest.raises(ConfigError, match=r"objective.annealing_tokens: 100 has no meaning for a model whose"):
        objective_of(config, Parametrisation(noisy_attention="causal"))
