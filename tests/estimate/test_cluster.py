"""Arithmetic of many GPUs: hand-computed figures of LLaDA2.0-flash, invariants, and what cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from difflm.diffusion.masks import block_numbers, document_positions, layout_mask, materialise
from difflm.errors import ConfigError
from difflm.estimate.cluster import (
    Cluster,
    ClusterEstimate,
    cluster_estimate,
    gathered_parameters,
    smallest_cluster,
    visible_pairs,
)
from difflm.estimate.run import estimate
from difflm.training.config_io import config_from_tree
from difflm.types import Layout

FLASH, GIB = "llada2.0-flash", 2**30
PARAMETERS = 102_889_697_280


def estimated(name: str = "llada2.0-mini", changes: dict[str, Any] | None = None, **cluster: Any) -> ClusterEstimate:
    machine = Cluster(**{"gpus": 8, "memory": 80 * GIB, **cluster})
    tree: dict[str, Any] = {
        "model": name, "output": "o", "data": {"paths": ["absent"], "row_length": 256}, "rows_per_batch": 1,
        "curriculum": [{"block_size": 32, "tokens": 1_000_000}], "accumulation": machine.gpus, "dtype": "bfloat16",
        "activation_checkpointing": True, "device": "cuda",
    }  # fmt: skip
    return cluster_estimate(config_from_tree({**tree, **(changes or {})}), machine)


@pytest.fixture(scope="module")
def flash() -> ClusterEstimate:
    return estimated(FLASH, gpus=64)


def test_flash_by_hand(flash: ClusterEstimate) -> None:
    assert flash.parameters == PARAMETERS
    assert round(flash.active / 1e9, 2) == 6.15
    assert flash.memory.total == pytest.approx(16 * PARAMETERS, rel=1e-7), "and a float32 counter of each tensor"
    assert flash.memory.state == pytest.approx(16 * PARAMETERS / 64, rel=1e-6)
    head = 157_184 * 4096
    # Query, key, value, output; norms; router; 256 routed and 1 shared expert.
    attention = 4096 * (32 + 2 * 4) * 128 + 32 * 128 * 4096 + 2 * 128
    layer = attention + 2 * 4096 + 256 * 4096 + 257 * 3 * 4096 * 1024
    assert flash.memory.root == 2 * (2 * head + 4096)
    assert flash.memory.layers == 2 * 2 * layer
    assert flash.memory.reduced == (2 + 4) * layer
    # The input of each layer in bfloat16, 2 x 256 tokens; the final norm and rows outside of the layers.
    kept = 32 * 512 * 4096 * 2
    assert kept < flash.memory.step.activations < 1.2 * kept
    assert flash.memory.step.logits == pytest.approx(2 * head * 2, rel=0.5)
    assert 33 * GIB < flash.memory.peaks["backward of a layer"] - flash.memory.state < 40 * GIB


def test_a_preference_run_holds_its_reference_in_the_runs_dtype() -> None:
    dpo = {"objective": {"kind": "dpo"}}
    alone, pairs = estimated(), estimated(changes=dpo)
    assert pairs.memory.total - alone.memory.total == 2 * alone.parameters
    lora = {"lora": {"rank": 4, "targets": ["attention"]}}
    assert estimated(changes=lora).memory.total == estimated(changes=lora | dpo).memory.total


def test_flash_does_not_fit_on_one_gpu_and_fits_on_the_fewest(flash: ClusterEstimate) -> None:
    assert not estimated(FLASH, gpus=1).fits
    assert flash.fits
    fewest = flash.smallest
    assert fewest is not None
    assert 24 < fewest < 64
    assert estimated(FLASH, gpus=fewest).fits
    assert not estimated(FLASH, gpus=fewest - 1).fits


def test_doubling_the_gpus_halves_what_is_sharded_and_nothing_else(flash: ClusterEstimate) -> None:
    twice = estimated(FLASH, gpus=128)
    assert twice.memory.state == pytest.approx(flash.memory.state / 2, abs=1)
    assert twice.memory.total == flash.memory.total
    for found in (flash, twice):
        count = found.cluster.gpus
        assert found.memory.total <= count * found.memory.state < found.memory.total + count
    assert twice.memory.peak - twice.memory.state == flash.memory.peak - flash.memory.state
    assert twice.smallest == flash.smallest


def test_experts_of_a_layer_are_gathered_or_stay_where_they_are() -> None:
    whole, eighth = estimated(gpus=16), estimated(gpus=16, expert_parallel=8)
    experts = 256 * 3 * 2048 * 512
    outside, layer = gathered_parameters(whole.model, expert_parallel=1)
    assert gathered_parameters(whole.model, expert_parallel=8) == (outside, layer - experts * 7 // 8)
    assert eighth.memory.layers == whole.memory.layers - 2 * 2 * experts * 7 // 8
    assert eighth.memory.state == whole.memory.state
    # Rows go to the experts and come back: 8 of each token, 512 tokens, bfloat16; the layer is computed twice.
    travels = 2 * 8 * 512 * 2048 * 2
    assert eighth.memory.step.recomputed - whole.memory.step.recomputed == travels
    assert eighth.memory.step.activations == whole.memory.step.activations
    assert eighth.other.step.activations - whole.other.step.activations == 19 * travels
    tight = Cluster(gpus=16, memory=eighth.memory.peak * 10 // 9, expert_parallel=8)
    assert (smallest_cluster(eighth.memory, tight) or 0) % 8 == 0


def test_without_sharding_every_gpu_holds_everything() -> None:
    one, many = (estimated("qwen3-0.6b", gpus=count, shard="none") for count in (1, 4))
    assert one.memory == many.memory
    # bfloat16 weights and gradients; float32 masters, gradients and two moments.
    assert one.memory.state == pytest.approx((2 + 2 + 4 + 4 + 8) * 596_049_920, rel=1e-5)
    assert (one.smallest, one.fits) == (1, True)
    assert estimated("qwen3-0.6b", shard="none", memory=8 * GIB).smallest is None


def test_no_number_of_gpus_helps_where_the_rest_is_too_much(flash: ClusterEstimate) -> None:
    assert smallest_cluster(flash.memory, replace(flash.cluster, memory=24 * GIB)) is None


def test_checkpointing_is_shown_both_ways(flash: ClusterEstimate) -> None:
    assert flash.other == estimated(FLASH, {"activation_checkpointing": False}, gpus=64).memory
    assert flash.other.step.activations > 10 * flash.memory.step.activations


def test_frozen_parameters_have_no_gradients_and_moments() -> None:
    learns, frozen = (estimated("qwen3-0.6b", {"optimizer": {"freeze": patterns}}) for patterns in ([], ["layers.*"]))
    assert frozen.memory.total < 0.5 * learns.memory.total


@pytest.mark.parametrize(("block", "streams"), [(8, True), (32, True), (96, True), (96, False), (None, False)])
def test_visible_pairs_are_those_of_the_mask(block: int | None, streams: bool) -> None:
    document_BL = torch.zeros(1, 96, dtype=torch.int64)
    position_BL = document_positions(document_BL)
    layout = Layout(
        document_BL=document_BL, two_streams=streams, causal_inside=block is None,
        block_BL=block_numbers(position_BL, block_size=block or 96),
    )  # fmt: skip
    mask = materialise(layout_mask(layout), 1, 96 * (1 + streams))
    assert visible_pairs(96, block, two_streams=streams) == int(mask.sum())


def test_hours_follow_from_operations() -> None:
    found = estimated(gpus=8, tflops=1000.0, mfu=0.4)
    head = 157_184 * 2048
    scored = found.stages[0].scored_rows / 256
    pairs = 256 * (256 + 32) / 256
    # Two model tokens per training token; 6 per parameter and row, 12 per head dimension and pair.
    each = 6 * (found.active - 2 * head) * 2 + 6 * head * scored + 12 * 16 * 128 * 20 * pairs
    assert sum(found.operations) == pytest.approx(1_000_000 * each)
    assert found.hours == pytest.approx(1_000_000 * each / (8 * 0.4e15) / 3600)
    assert estimated().hours is None
    halved = estimated(gpus=16, tflops=1000.0, mfu=0.4)
    assert halved.hours == pytest.approx((found.hours or 0) / 2)


def test_a_clean_half_doubles_the_rows_of_the_layers() -> None:
    two, one = (estimated("qwen3-0.6b", {"curriculum": [{"block_size": size, "tokens": 1000}]}) for size in (32, "row"))
    linear = 6.0 * (two.active - 151_936 * 1024) * 1000
    attention = [12.0 * 16 * 128 * 28 * pairs * 1000 for pairs in (256 + 32, 256)]
    scored = [6.0 * 151_936 * 1024 * each.stages[0].scored_rows / 256 * 1000 for each in (two, one)]
    assert sum(two.operations) - sum(one.operations) == pytest.approx(
        linear + attention[0] - attention[1] + scored[0] - scored[1]
    )


def test_only_the_pairs_of_an_adapter_have_gradients_and_moments() -> None:
    whole, lora = (estimated(changes=changes, gpus=4) for changes in ({}, {"lora": {"rank": 8}}))
    pairs = lora.parameters - whole.parameters
    assert 0 < pairs < whole.parameters / 100
    # Everything in bfloat16; of the pairs masters, gradients and two moments in float32, and bfloat16 gradients.
    assert lora.memory.total == pytest.approx(2 * whole.parameters + (2 + 16 + 2) * pairs, rel=1e-4)
    assert lora.memory.state == pytest.approx(lora.memory.total / 4, abs=1)
    each = -(-pairs // lora.model.num_layers)
    assert lora.memory.layers == whole.memory.layers + 2 * 2 * each
    assert lora.memory.reduced == (2 + 4) * each
    backward, start = "backward of a layer", "start of the backward pass"
    rest = lora.memory.step.recomputed + lora.memory.reduced - lora.memory.step.logits
    assert lora.memory.peaks[backward] - lora.memory.peaks[start] == rest, "the root's weights have no gradients"
    assert lora.memory.peak < whole.memory.peak


def test_an_adapter_on_one_gpu_is_the_estimate_of_one_device() -> None:
    found = estimated(changes={"lora": {"rank": 8}}, gpus=1, shard="none")
    alone = estimate(found.config, measured=False)
    assert found.parameters == alone.parameters.parameters
    assert found.memory.peaks == alone.peaks


@pytest.mark.parametrize(
    ("name", "changes", "cluster", "message"),
    [
        (FLASH, {"accumulation": 1}, {"gpus": 0}, "gpus: 0 is none; use 1 or more"),
        (FLASH, {}, {"memory": 0}, "gpu-memory: 0 is none; use 1 or more"),
        (FLASH, {}, {"expert_parallel": 3}, "expert-parallel: 3 does not divide 8 GPUs; use a divisor"),
        (FLASH, {}, {"gpus": 24, "expert_parallel": 12}, "12 does not divide the 256 experts of a layer; use a"),
        ("qwen3-0.6b", {}, {"expert_parallel": 2}, "expert-parallel: 2, but the model has no experts; leave it out"),
        (FLASH, {}, {"shard": "none", "expert_parallel": 2}, "shards experts, which shard none does not"),
        (FLASH, {}, {"tflops": 0.0}, "gpu-tflops: 0 is no speed; use more than 0"),
        (FLASH, {}, {"mfu": 1.5}, "mfu: 1.5 is outside of 0 to 1"),
        (FLASH, {"accumulation": 12}, {}, "12 micro-batches of 1 rows are not divisible by 8 GPUs; set it to 8 or 16"),
        (FLASH, {"accumulation": 2}, {}, "2 micro-batches of 1 rows are not divisible by 8 GPUs; set it to 8, or"),
        (FLASH, {"data": {"paths": ["a"], "row_length": 65_536}}, {}, "row_length: 65536 exceeds the model's context"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(name: str, changes: dict[str, Any], cluster: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        estimated(name, changes, **cluster)
