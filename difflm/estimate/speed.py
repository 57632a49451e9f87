"""How long steps take: a few real ones on the run's shapes with few layers, carried on in a straight line.

Every layer costs the same, so the time of a micro-batch is a + b * layers, and two layer counts give both; the few
dense layers of a mixture belong to a. Where even those layers are too much for this machine, matrix products alone are
timed, which gives a lower bound.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from difflm.checkpoints.loading import resolve_dtype
from difflm.diffusion.noise import RowNoise
from difflm.diffusion.objectives import BlockDiffusion, weighted_sums
from difflm.estimate.memory import largest_step, parameter_memory, peak_memory_of
from difflm.estimate.tiles import tile_shapes
from difflm.estimate.workload import StageWork, plain_rows, scored_rows
from difflm.models.attention import backend_for
from difflm.models.config import ModelConfig, RopeConfig
from difflm.models.transformer import Transformer
from difflm.scoring import score_input
from difflm.training.config import TrainConfig
from difflm.training.metrics import peak_memory, resident_memory
from difflm.training.optim import MasterWeights, Optimizer
from difflm.types import ModelInput

REPEATS = 3
"""Timed repetitions, of which the middle one counts."""

MOST_LAYERS = 4
"""Layers of the larger of the two models: with fewer, malloc's share of the memory is not that of a whole model."""

MOST_DENSE = 2
"""Dense layers of a mixture, up to which they are among the timed ones; where there are more, all count as sparse."""

INIT_STD = 0.02
"""Standard deviation of the random weights that are timed."""

BUDGET = 60.0
"""Seconds that calibration may take; what would take longer is scaled by operations instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Seconds, on one machine.

    Attributes:
        micro_steps: forward and backward of each stage's micro-batch.
        update: clipping, optimiser and master copies.
        forward: of one model token without gradients (validation).
        method: how this was found, for the reader.
        overhead: what the process grew by beyond its tensors, as a share of them; None where it was not measured.
    """

    micro_steps: tuple[float, ...]
    update: float
    forward: float
    method: str
    overhead: float | None = None


def step_operations(model: ModelConfig, inputs: ModelInput, *, active: int, recompute: bool) -> float:
    """Return the floating-point operations of forward and backward of one micro-batch.

    Args:
        model: architecture.
        inputs: the micro-batch.
        active: parameters that take part in the forward of one token.
        recompute: each layer's forward runs twice (activation checkpointing).
    """
    outside = model.vocab_size * model.hidden_size * (1 if model.tied_embeddings else 2)
    passes = 4 if recompute else 3  # the backward of a product is two products
    layers = 2.0 * (active - outside) * inputs.token_BN.numel() * passes
    # The head's logits are computed again in the backward pass.
    head = 2.0 * model.vocab_size * model.hidden_size * scored_rows(inputs) * 4
    pairs = sum(queries * (queries + prefix) for queries, prefix, _ in tile_shapes(inputs.layout))
    attention = 4.0 * pairs * model.num_heads * model.head_dim * model.num_layers * (passes + 0.5)
    return layers + head + attention


def measured_speed(
    config: TrainConfig, model: ModelConfig, stages: Sequence[StageWork], operations: Sequence[float]
) -> Speed:
    """Time the run's own micro-batches on one and on a few layers of random weights; best in a fresh process.

    Args:
        config: the run; its device, dtype, attention and optimiser are used.
        model: architecture.
        stages: of the run.
        operations: of each stage's micro-batch, for stages that are not timed.
    """
    begun = time.perf_counter()
    base = 1 + dense_ones(model)
    counts = (min(model.num_layers, MOST_LAYERS + base - 1), base) if model.num_layers > base else (model.num_layers,)
    warm_up(config)
    largest = with_layers(model, counts[0])
    # First of all, while the process has held nothing else.
    shrunken = [_Shrunken(config, largest)]
    overhead = _overhead(shrunken[0], largest, stages)
    shrunken += [_Shrunken(config, with_layers(model, count)) for count in counts[1:]]

    def whole(action: Callable[[_Shrunken], Callable[[], object]]) -> float:
        found = [_middle(action(each), device=config.device) for each in shrunken]
        slope = max(found[0] - found[-1], 0.0) / max(counts[0] - counts[-1], 1)
        return found[-1] + (model.num_layers - counts[-1]) * slope

    micro: list[float] = []
    for index, stage in enumerate(stages):
        spent = time.perf_counter() - begun
        if index and spent * (index + 1) / index > BUDGET:
            micro.append(micro[0] * operations[index] / operations[0])
        else:
            micro.append(whole(lambda each, batch=stage.micro_batch: lambda: each.micro_step(batch)))
    update = whole(lambda each: each.update)
    first = stages[0].micro_batch
    return Speed(
        micro_steps=tuple(micro),
        update=update,
        forward=whole(lambda each: lambda: each.forward(first)) / first.token_BN.numel(),
        method=f"measured here on {' and '.join(map(str, sorted(counts)))} of {model.num_layers} layers",
        overhead=overhead,
    )


def _overhead(shrunken: _Shrunken, model: ModelConfig, stages: Sequence[StageWork]) -> float | None:
    """Return what the process holds beyond its tensors after a few steps, as a share of them; None off the CPU."""
    config = shrunken.config
    before = shrunken.resident
    if torch.device(config.device).type != "cpu" or before is None:
        return None
    heaviest = max(
        (stage.heaviest for stage in stages), key=lambda each: sum(term.row_M.numel() for term in each.terms)
    )
    for _ in range(1 + REPEATS):
        for _ in range(min(config.accumulation, 2)):
            shrunken.micro_step(heaviest)
        shrunken.update()
    peak = peak_memory(config.device)
    dtype = resolve_dtype(config.dtype)
    backend = backend_for(config.attention, device=config.device, dtype=dtype, head_dim=model.head_dim)
    parameters = parameter_memory(model, shrunken.optimizer.config, dtype=dtype)
    step = largest_step(config, model, [heaviest], backend=backend)
    tensors = max(peak_memory_of(parameters, step, accumulation=config.accumulation).values())
    return None if peak is None else max((peak - before) / tensors - 1.0, 0.0)


def product_speed(config: TrainConfig, model: ModelConfig, operations: Sequence[float], tokens: Sequence[int]) -> Speed:
    """Return a lower bound: the operations of each micro-batch at the speed of one matrix product of the model's size.

    Args:
        config: the run; its device and dtype are used.
        model: architecture.
        operations: of each stage's micro-batch.
        tokens: model tokens of each stage's micro-batch.
    """
    rows, dtype = min(max(tokens), 1024), resolve_dtype(config.dtype)
    left = torch.ones(rows, model.hidden_size, dtype=dtype, device=config.device)
    right = torch.ones(model.hidden_size, min(model.intermediate_size, 8192), dtype=dtype, device=config.device)
    rate = 2.0 * left.numel() * right.shape[1] / _middle(lambda: left @ right, device=config.device)
    return rated_speed(operations, tokens, rate=rate, method="at least: matrix products as fast as one measured here")


def rated_speed(operations: Sequence[float], tokens: Sequence[int], *, rate: float, method: str) -> Speed:
    """Return the times of a machine that sustains a rate, updates left out.

    Args:
        operations: of each stage's micro-batch.
        tokens: model tokens of each stage's micro-batch.
        rate: floating-point operations per second.
        method: see `Speed`.
    """
    return Speed(
        micro_steps=tuple(each / rate for each in operations),
        update=0.0,
        forward=operations[0] / 3 / tokens[0] / rate,
        method=method,
    )


def warm_up(config: TrainConfig) -> None:
    """Do a step on a tiny model, so that this process holds what a run's holds beside its tensors: code, threads.

    Args:
        config: the run.
    """
    rope = RopeConfig()
    tiny = ModelConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=16,
        norm_eps=1e-5, rope=rope, max_positions=64, tied_embeddings=True,
    )  # fmt: skip
    inputs = BlockDiffusion(block_size=8).prepare(plain_rows(64, rows=1, fill=1.0), mask_id=63, noise=RowNoise(0))
    step = _Shrunken(config, tiny)
    step.micro_step(inputs)
    step.update()


class _Shrunken:
    """The run's step on few layers of random weights."""

    def __init__(self, config: TrainConfig, model: ModelConfig) -> None:
        self.config, self.resident = config, resident_memory()
        with torch.random.fork_rng(devices=[]):
            master = Transformer(model).to(config.device).train()
            for parameter in master.parameters():
                # Weights of a usual size: larger ones make softmaxes of denormal numbers, which are slow.
                if parameter.dim() > 1:
                    torch.nn.init.normal_(parameter, std=INIT_STD)
        # Patterns may name layers that are not here.
        settings = replace(config.optimizer, freeze=(), groups=())
        self.optimizer = Optimizer(master, settings, mask_id=None)
        narrow = config.dtype == "bfloat16"
        self.working = Transformer(model).to(config.device).bfloat16() if narrow else master
        self.weights = MasterWeights(master, self.working)

    def micro_step(self, inputs: ModelInput) -> None:
        """Forward, loss and backward; gradients add up as in a run with accumulation."""
        config = self.config
        scores = score_input(
            self.working,
            inputs,
            chunk=config.head_chunk_rows,
            backend=config.attention,
            activation_checkpointing=config.activation_checkpointing,
        )
        torch.stack(weighted_sums(scores, inputs)).sum().backward()
        self.weights.collect()

    def update(self) -> None:
        """Clip and step, on gradients that `micro_step` left or on zeros."""
        for plan in self.optimizer.trained:
            if plan.parameter.grad is None:
                plan.parameter.grad = torch.zeros_like(plan.parameter)
        self.optimizer.clip()
        self.optimizer.step(0.0)
        self.weights.publish()

    @torch.no_grad()
    def forward(self, inputs: ModelInput) -> None:
        """A forward with its scores, as validation does it."""
        score_input(self.working, inputs, chunk=self.config.head_chunk_rows, backend=self.config.attention)


def with_layers(model: ModelConfig, layers: int) -> ModelConfig:
    """Return the architecture with fewer layers: the dense ones of a mixture first, then the commonest kind."""
    moe = model.moe
    if moe is not None:
        moe = replace(moe, dense_layers=tuple(range(min(dense_ones(model), layers - 1))))
    return replace(model, num_layers=layers, moe=moe)


def dense_ones(model: ModelConfig) -> int:
    """Return how many dense layers of a mixture are timed as such: all, unless they are too many to time."""
    count = 0 if model.moe is None else len(model.moe.dense_layers)
    return count if count <= MOST_DENSE else 0


def _middle(action: Callable[[], object], *, device: str) -> float:
    """Return the median seconds of a few calls after one that warms up."""
    cuda = torch.device(device).type == "cuda"
    # One thread alone: its own seconds, which other programs of the machine do not lengthen.
    clock = time.perf_counter if cuda or torch.get_num_threads() > 1 else time.process_time
    times = []
    for repeat in range(REPEATS + 1):
        started = clock()
        action()
        if cuda:
            torch.cuda.synchronize(device)
        if repeat:
            times.append(clock() - started)
    return statistics.median(times)
