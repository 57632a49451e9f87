"""Operations counted against torch's own counter, and times of layers that add up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from difflm.diffusion.objectives import weighted_sums
from difflm.estimate.speed import measured_speed, product_speed, rated_speed, step_operations, with_layers
from difflm.estimate.workload import workload_of
from difflm.models.transformer import Transformer
from difflm.scoring import score_input
from difflm.types import Parametrisation
from tests.estimate.test_memory import LING, SHAPE, micro_batch
from tests.estimate.test_workload import config


@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_are_those_that_torch_counts(checkpointing: bool) -> None:
    inputs, model = micro_batch(8), Transformer(SHAPE)
    active = sum(each.numel() for each in model.parameters())
    with FlopCounterMode(display=False) as counter:
        scores = score_input(model, inputs, activation_checkpointing=checkpointing)
        torch.stack(weighted_sums(scores, inputs)).sum().backward()
    found = step_operations(SHAPE, inputs, active=active, recompute=checkpointing)
    # torch does not count the fused attention kernel of the CPU: leave attention out on both sides.
    pairless = step_operations(replace(SHAPE, head_dim=0), inputs, active=active, recompute=checkpointing)
    # Recomputing stops before a layer's last product, whose result nobody needs.
    assert counter.get_total_flops() == pytest.approx(pairless, rel=0.08 if checkpointing else 0.02)
    assert found > pairless


def test_measured_speed_has_a_time_for_every_stage_and_grows_with_layers() -> None:
    run = config(threads=1)
    work = workload_of(run, Parametrisation(), mask_id=299)
    few, many = (measured_speed(run, replace(SHAPE, num_layers=layers), work.stages, [1.0, 1.0]) for layers in (2, 200))
    assert len(few.micro_steps) == 2
    assert all(time > 0 for time in (*few.micro_steps, few.update, few.forward))
    assert many.micro_steps[1] > 5 * few.micro_steps[1]
    assert few.method == "measured here on 1 and 2 of 2 layers"
    assert many.method == "measured here on 1 and 4 of 200 layers"
    assert few.overhead is not None
    assert few.overhead >= 0


def test_given_and_bounded_rates_divide_the_operations() -> None:
    speed = rated_speed([6e12, 3e12], [100, 100], rate=3e12, method="as given")
    assert speed.micro_steps == (2.0, 1.0)
    assert speed.forward == pytest.approx(2.0 / 3 / 100)
    bound = product_speed(config(), SHAPE, [1e9], [128])
    assert bound.micro_steps[0] > 0
    assert bound.method.startswith("at least")


def test_fewer_layers_are_of_the_commonest_kind() -> None:
    assert with_layers(SHAPE, 1).num_layers == 1
    ling = replace(SHAPE, num_layers=6, moe=LING)
    assert with_layers(ling, 3).moe == LING, "its one dense layer is there"
    assert with_layers(ling, 1).moe == replace(LING, dense_layers=())
    every_other = replace(LING, dense_layers=(0, 2, 4))
    assert with_layers(replace(ling, moe=every_other), 4).moe == replace(LING, dense_layers=())


def test_the_dense_layer_of_a_mixture_is_timed_once() -> None:
    run = config(threads=1)
    work = workload_of(run, Parametrisation(), mask_id=299)
    found = measured_speed(run, replace(SHAPE, num_layers=40, moe=LING), work.stages, [1.0, 1.0])
    assert found.method == "measured here on 2 and 5 of 40 layers"
    whole = measured_speed(run, replace(SHAPE, num_layers=2, moe=LING), work.stages, [1.0, 1.0])
    assert whole.method == "measured here on 2 of 2 layers"
    assert found.micro_steps[0] > 3 * whole.micro_steps[0]
