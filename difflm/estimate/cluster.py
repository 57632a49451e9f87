"""A run on many GPUs by arithmetic: bytes on each of them, how many are enough, hours. Nothing here is measured.

Assumed: data parallel over all GPUs; parameters, gradients and moments in float32, each sharded evenly over all of
them (FSDP2's full shard) and gathered in the run's dtype where they are used; gradients reduced in float32; embedding
and head gathered for the whole step, the layers one by one with the next one prefetched. With expert parallelism each
GPU gathers only its share of a layer's experts, tokens travel to them, and loads are balanced. Rows are full, of one
document each. With LoRA the base is sharded in the run's dtype and has no gradients or moments; pairs are spread evenly
over the layers, and activations and operations are counted as if every weight learned, an upper bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch

from difflm.checkpoints.loading import resolve_dtype
from difflm.checkpoints.source import parameter_shapes
from difflm.errors import ConfigError
from difflm.estimate.facts import model_facts
from difflm.estimate.memory import (
    WIDE,
    ParameterMemory,
    StepMemory,
    largest_step,
    parameter_memory,
    peak_memory_of,
    with_reference,
)
from difflm.estimate.workload import StageWork, workload_of
from difflm.models.config import ModelConfig
from difflm.models.ranges import key_ranges
from difflm.training.config import TrainConfig
from difflm.types import Layout, ModelInput

RESERVED = 0.1
"""Share of a GPU's memory that is not for tensors: context, communication buffers, fragmentation. Assumed."""

PREFETCHED = 2
"""Layers gathered at once: the one that computes and the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The machine.

    Attributes:
        gpus: how many.
        memory: bytes of each.
        shard: "fsdp" as above, or "none": everything on every GPU.
        expert_parallel: GPUs that share a layer's experts; 1 = each gathers all of them.
        tflops: peak of a GPU in the run's dtype, 1e12 operations per second; None: no time is computed.
        mfu: share of the peak that goes into the model's own operations (recomputation is none of them).

    Raises:
        ConfigError: a value that is not possible.
    """

    gpus: int
    memory: int
    shard: Literal["fsdp", "none"] = "fsdp"
    expert_parallel: int = 1
    tflops: float | None = None
    mfu: float = 0.3

    def __post_init__(self) -> None:
        """Refuse what is no cluster."""
        for name, value in (
            ("gpus", self.gpus),
            ("gpu-memory", self.memory),
            ("expert-parallel", self.expert_parallel),
        ):
            if value < 1:
                raise ConfigError(f"{name}: {value} is none; use 1 or more")
        if self.gpus % self.expert_parallel:
            raise ConfigError(
                f"expert-parallel: {self.expert_parallel} does not divide {self.gpus} GPUs; use a divisor"
            )
        if self.shard == "none" and self.expert_parallel > 1:
            raise ConfigError("expert-parallel: shards experts, which shard none does not; use shard fsdp, or 1")
        if self.tflops is not None and self.tflops <= 0:
            raise ConfigError(f"gpu-tflops: {self.tflops:g} is no speed; use more than 0")
        if not 0 < self.mfu <= 1:
            raise ConfigError(f"mfu: {self.mfu:g} is outside of 0 to 1; use the share of the peak, e.g. 0.3")

    @property
    def usable(self) -> int:
        """Return the bytes of a GPU that tensors can have."""
        return math.floor(self.memory * (1 - RESERVED))


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """What one GPU holds, bytes.

    Attributes:
        total: parameters, gradients and moments of the whole model (not of one GPU).
        state: this GPU's share of them.
        root: embedding, head and last norm, gathered.
        layers: the gathered layers.
        reduced: a layer's gradients in the run's dtype, and again in float32 for their reduction.
        step: activations, logits and masks of a micro-batch.
        peaks: bytes at the moments that can be the largest one.
    """

    total: int
    state: int
    root: int
    layers: int
    reduced: int
    step: StepMemory
    peaks: dict[str, int]

    @property
    def peak(self) -> int:
        """Return the most bytes at once."""
        return max(self.peaks.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterEstimate:
    """What a run needs on a cluster.

    Attributes:
        config, model, cluster: what was asked.
        parameters, active: numbers of the model; those that a token meets.
        memory: of one GPU, with activation checkpointing as the run has it.
        other: the same with the other choice of activation checkpointing.
        smallest: fewest GPUs on which the run fits; None if no number helps.
        operations: of each stage, forward and backward.
        stages: of the run.
    """

    config: TrainConfig
    model: ModelConfig
    cluster: Cluster
    parameters: int
    active: int
    memory: GpuMemory
    other: GpuMemory
    smallest: int | None
    operations: tuple[float, ...]
    stages: tuple[StageWork, ...]

    @property
    def fits(self) -> bool:
        """Return whether the peak leaves the reserve free."""
        return self.memory.peak <= self.cluster.usable

    @property
    def micro_steps(self) -> int:
        """Return the forwards of a GPU in an optimiser step."""
        return self.config.accumulation // self.cluster.gpus

    @property
    def hours(self) -> float | None:
        """Return the time of the run; None without the speed of a GPU."""
        cluster = self.cluster
        if cluster.tflops is None:
            return None
        return sum(self.operations) / (cluster.gpus * cluster.tflops * 1e12 * cluster.mfu) / 3600


def cluster_estimate(config: TrainConfig, cluster: Cluster) -> ClusterEstimate:
    """Return what a run needs on a cluster, by the assumptions of this module.

    Args:
        config: the run. `rows_per_batch` is of one GPU; `accumulation` counts the micro-batches of a step on all GPUs.
        cluster: the machine.

    Raises:
        DifflmError: a run or model that cannot be used, or does not divide over the cluster.
    """
    facts = model_facts(config)
    model, length = facts.model, config.data.row_length
    if length > model.max_positions:
        raise ConfigError(
            f"train.data.row_length: {length} exceeds the model's context of {model.max_positions} tokens; lower it"
        )
    _check_shares(config, model, cluster)
    work = workload_of(config, facts.parametrisation, mask_id=facts.mask_id)
    batches = [stage.heaviest for stage in work.stages]
    # The float32 shards are masters and weights in one; the base of an adapter has no masters.
    wide = cluster.shard == "fsdp" and config.lora is None
    dtype = torch.float32 if wide else resolve_dtype(config.dtype)
    counts = parameter_memory(model, config.learning, dtype=dtype, lora=config.lora, family=facts.family)
    counts = with_reference(counts, config)
    gathered = (0, 0)
    if cluster.shard == "fsdp":
        gathered = gathered_parameters(model, expert_parallel=cluster.expert_parallel)
    memory, other = (
        gpu_memory(
            replace(config, activation_checkpointing=each), model, batches, cluster, counts=counts, gathered=gathered
        )
        for each in (config.activation_checkpointing, not config.activation_checkpointing)
    )
    return ClusterEstimate(
        config=config,
        model=model,
        cluster=cluster,
        parameters=counts.parameters,
        active=counts.active,
        memory=memory,
        other=other,
        smallest=smallest_cluster(memory, cluster),
        operations=tuple(
            stage.tokens * model_operations(model, stage, active=counts.active, row_length=length)
            for stage in work.stages
        ),
        stages=work.stages,
    )


def _check_shares(config: TrainConfig, model: ModelConfig, cluster: Cluster) -> None:
    if config.accumulation % cluster.gpus:
        lower = config.accumulation // cluster.gpus * cluster.gpus
        advice = f"{lower} or {lower + cluster.gpus}" if lower else f"{cluster.gpus}"
        raise ConfigError(
            f"train.accumulation: {config.accumulation} micro-batches of {config.rows_per_batch} rows are not "
            f"divisible by {cluster.gpus} GPUs; set it to {advice}, or change gpus"
        )
    if cluster.expert_parallel == 1:
        return
    if model.moe is None:
        raise ConfigError(f"expert-parallel: {cluster.expert_parallel}, but the model has no experts; leave it out")
    if model.moe.num_experts % cluster.expert_parallel:
        raise ConfigError(
            f"expert-parallel: {cluster.expert_parallel} does not divide the {model.moe.num_experts} experts of a "
            f"layer; use a divisor of {model.moe.num_experts}"
        )


def gpu_memory(
    config: TrainConfig,
    model: ModelConfig,
    batches: list[ModelInput],
    cluster: Cluster,
    *,
    counts: ParameterMemory,
    gathered: tuple[int, int],
) -> GpuMemory:
    """Return what one GPU holds.

    Args:
        config: the run; dtype, activation checkpointing and head chunk are used.
        model: architecture.
        batches: a micro-batch of each stage.
        cluster: the machine.
        counts: of a float32 run where every parameter learns and is sharded, of the run otherwise.
        gathered: parameters (outside of the layers, of the largest layer) that a GPU gathers.
    """
    step = largest_step(config, model, batches, backend="flex")
    total = counts.weights + counts.reference + counts.masters + counts.gradients + counts.working_gradients
    total += counts.optimizer
    if cluster.shard == "none":
        peaks = peak_memory_of(counts, step, accumulation=config.accumulation // cluster.gpus)
        return GpuMemory(total=total, state=total, root=0, layers=0, reduced=0, step=step, peaks=peaks)
    size, (outside, largest) = resolve_dtype(config.dtype).itemsize, gathered
    step = _with_exchange(step, model, batches, cluster, size=size, recomputes=config.activation_checkpointing)
    state = math.ceil(total / cluster.gpus)
    learns = largest
    if config.lora is not None:
        learns = math.ceil(counts.gradients / WIDE / model.num_layers)
        largest += learns
    root, layers, reduced = outside * size, PREFETCHED * largest * size, learns * (size + WIDE)
    held = state + root + layers + step.activations + step.masks
    peaks = {
        "start of the backward pass": held + step.logits,
        # The root's gradients wait for the end of the backward pass.
        "backward of a layer": held + (root if config.lora is None else 0) + step.recomputed + reduced,
    }
    return GpuMemory(total=total, state=state, root=root, layers=layers, reduced=reduced, step=step, peaks=peaks)


def _with_exchange(
    step: StepMemory, model: ModelConfig, batches: list[ModelInput], cluster: Cluster, *, size: int, recomputes: bool
) -> StepMemory:
    """Return a step with the rows that travel to other GPUs' experts and back, once more each."""
    if model.moe is None or cluster.expert_parallel == 1:
        return step
    tokens = max(each.token_BN.numel() for each in batches)
    rows = tokens * 2 * model.moe.experts_per_token * model.hidden_size * size
    sparse = model.num_layers - len(model.moe.dense_layers)
    return replace(
        step,
        activations=step.activations + (0 if recomputes else rows * sparse),
        layer=step.layer + rows,
        recomputed=step.recomputed + (rows if recomputes else 0),
    )


def gathered_parameters(model: ModelConfig, *, expert_parallel: int) -> tuple[int, int]:
    """Return the parameters (outside of the layers, of the largest layer) that a GPU gathers.

    Args:
        model: architecture.
        expert_parallel: GPUs that share a layer's experts.
    """
    outside, layers = 0, [0] * model.num_layers
    for name, shape in parameter_shapes(model).items():
        count = 0 if name.endswith(".expert_bias") else math.prod(shape)  # a buffer, whole on every GPU
        if name.startswith("layers."):
            layers[int(name.split(".")[1])] += count // expert_parallel if ".mlp.experts." in name else count
        else:
            outside += count
    return outside, max(layers)


def smallest_cluster(memory: GpuMemory, cluster: Cluster) -> int | None:
    """Return the fewest GPUs on which a run fits: a multiple of the expert parallel degree; None if none do.

    Args:
        memory: of one GPU of `cluster`.
        cluster: the machine; its number of GPUs does not matter.
    """
    if cluster.shard == "none":
        return 1 if memory.peak <= cluster.usable else None
    room = cluster.usable - (memory.peak - memory.state)
    if room <= 0:
        return None
    return math.ceil(math.ceil(memory.total / room) / cluster.expert_parallel) * cluster.expert_parallel


def model_operations(model: ModelConfig, stage: StageWork, *, active: int, row_length: int) -> float:
    """Return the floating-point operations of forward and backward per training token.

    6 per active parameter of the layers and model token (two model tokens per training token where there is a clean
    half), 6 per parameter of the head and scored row, 12 H E per layer and visible pair of query and key. Recomputation
    is not counted.

    Args:
        model: architecture.
        stage: block size and micro-batch.
        active: parameters that a token meets.
        row_length: L, tokens.
    """
    head = model.vocab_size * model.hidden_size
    outside = head * (1 if model.tied_embeddings else 2)
    rows = stage.micro_batch.layout.document_BL.shape[0]
    tokens = rows * row_length
    linear = 6.0 * (active - outside) * stage.model_tokens / tokens
    scored = 6.0 * head * stage.scored_rows / tokens
    layout = stage.micro_batch.layout
    if layout.stand_BW is None:
        pairs = visible_pairs(row_length, stage.block_size, two_streams=layout.two_streams)
    else:
        pairs = window_pairs(layout) / rows
    return linear + scored + 12.0 * model.num_heads * model.head_dim * model.num_layers * pairs / row_length


def window_pairs(layout: Layout) -> int:
    """Return the pairs of query and key that see each other in the rows of a layout, counted."""
    ranges = key_ranges(layout)
    own, before = ranges.own_stop_BN - ranges.own_start_BN, ranges.before_stop_BN - ranges.before_start_BN
    return int((own + before).sum(dtype=torch.int64))


def visible_pairs(length: int, block_size: int | None, *, two_streams: bool) -> int:
    """Return the pairs of query and key that see each other in a row of one document.

    Args:
        length: L, tokens.
        block_size: B; None for next-token training.
        two_streams: noisy and clean: L B among the noisy, L (L - B) / 2 from noisy to clean, L (L + B) / 2 among the
            clean.
    """
    if block_size is None:
        return length * (length + 1) // 2
    return length * (length + block_size) if two_streams else length * (length + block_size) // 2
