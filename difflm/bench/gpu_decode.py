"""Decoding in the GPU check: forwards of blocks against the memory they touch, and tokens per second.

A forward of few rows has to read every weight it uses and the cache once: bytes over the measured copy bandwidth is
the time below which no implementation can go.

Shape legend: see `difflm.types`; N rows of one forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difflm.bench.gpu_cases import relative_difference
from difflm.bench.speed_systems import BLOCK, Probe, random_prompts
from difflm.bench.steps import INIT_STD, median_seconds, shape_of
from difflm.checkpoints.config import CheckpointConfig
from difflm.checkpoints.loading import LoadedModel
from difflm.checkpoints.rules import stored_dtype
from difflm.decode.engine import Engine
from difflm.decode.forwards import Execution, body_of, record_cuda
from difflm.decode.policies.named import policy
from difflm.decode.request import SamplingParams
from difflm.models.cache import bytes_per_token
from difflm.models.config import ModelConfig
from difflm.models.moe import Experts
from difflm.models.transformer import Transformer

SHAPES = ("smollm2-135m", "llada2.0-mini")
CACHED, BATCHES, SCHEDULES = (512, 4096), (1, 8, 32), (1, 4, 8, 16, 32)
QUICK_CACHED, QUICK_BATCHES, QUICK_SCHEDULES = (24,), (1, 3), (8,)
FLOOR_GOAL = 1.5
"""Time of a forward over its memory floor."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2}
"""Largest difference of the hidden states of both kinds of attention, relative to the largest number."""


def device_model(config: ModelConfig, *, device: torch.device, dtype: torch.dtype) -> Transformer:
    """Return a model with random weights that are drawn on the device: nothing passes through the CPU.

    Args:
        config: architecture.
        device: of the parameters.
        dtype: of the parameters.
    """
    with torch.device("meta"):
        model = Transformer(config)
    generator = torch.Generator(device).manual_seed(0)
    state: dict[str, Tensor] = {}
    for name, parameter in model.stored_tensors().items():
        made = torch.ones(parameter.shape, device=device, dtype=stored_dtype(name, dtype))
        state[name] = made.normal_(std=INIT_STD, generator=generator) if parameter.dim() > 1 else made
    model.load_state_dict(state, strict=False, assign=True)
    model.tie()
    return model.eval().requires_grad_(False)


def shape(name: str, *, quick: bool) -> ModelConfig:
    """Return a published shape; quick: its first layers, with experts and a vocabulary of a tiny one."""
    config = shape_of(name, layers=2 if quick else 0)
    if not quick:
        return config
    moe = None if config.moe is None else replace(config.moe, num_experts=16, expert_size=32, groups=4, groups_kept=2)
    return replace(config, hidden_size=64, intermediate_size=96, vocab_size=512, head_dim=16, num_heads=4,
                   num_kv_heads=2, moe=moe)  # fmt: skip


def copy_bandwidth(device: torch.device, *, quick: bool) -> float:
    """Return what copying a large tensor moves, bytes per second: read and written bytes together."""
    source = torch.ones((1 << (20 if quick else 29)), device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source), device, quick=quick)
    return 2 * source.numel() * source.element_size() / seconds


@dataclass(slots=True)
class Touched:
    """A `RouterProbe` that counts the experts which get a row.

    Attributes:
        experts: by layer.
    """

    experts: dict[int, int] = field(default_factory=dict[int, int])

    def measure(self, logit_NE: Tensor, expert_NK: Tensor) -> tuple[Tensor, ...]:
        """Return the number of experts chosen."""
        return (torch.zeros_like(logit_NE[0]).index_fill_(0, expert_NK.flatten(), 1.0).sum(),)

    def record(self, layer: int, measured: tuple[Tensor, ...]) -> None:
        """Take in a layer's number."""
        self.experts[layer] = int(measured[0])


@torch.inference_mode()
def touched_bytes(probe: Probe, *, sequences: int, cached: int) -> int:
    """Return what a forward has to read: weights with the experts that are used, head, embedded rows, and the cache.

    Args:
        probe: the forward.
        sequences: of it.
        cached: tokens of each one's cache.
    """
    model, counted = probe.model, Touched()
    model(probe.token_BN, probe.position_BN, probe.attend, probe=counted)
    total = 0
    for number, layer in enumerate(model.layers):
        for module in layer.modules():
            size = sum(each.numel() * each.element_size() for each in module.parameters(recurse=False))
            if isinstance(module, Experts):
                size = size * counted.experts[number] // module.gate_up.shape[0]
            total += size
    head, rows = model.head.weight, probe.token_BN.numel()
    total += head.numel() * head.element_size() + rows * head.shape[1] * head.element_size()
    return total + sequences * cached * bytes_per_token(model.config, head.dtype)


@torch.inference_mode()
def forward_figures(
    model: Transformer, *, sequences: int, cached: int, bandwidth: float, quick: bool
) -> dict[str, Any]:
    """Time one forward of a block per sequence, head included, as it is and recorded as a CUDA graph.

    Args:
        model: random weights.
        sequences: whose blocks the forward holds.
        cached: tokens of each one's cache.
        bandwidth: of copying, bytes per second.
        quick: fewer calls.

    Returns:
        milliseconds, what they are over the memory floor, and the largest difference between both ways.
    """
    device, rows = model.embedding.weight.device, sequences * BLOCK
    loaded = loaded_of(model)
    probe = Probe(loaded, sequences=sequences, rows=BLOCK, cached=cached, head=rows)
    floor = touched_bytes(probe, sequences=sequences, cached=cached) / bandwidth
    inputs = segment_inputs(probe, sequences=sequences, cached=cached)
    body = body_of(model, probe.attend.pool)

    def compute() -> Tensor:
        return model.head(body(*inputs))

    apart = relative_difference(body(*inputs), model(probe.token_BN, probe.position_BN, probe.attend)[0].double())
    ways: dict[str, Callable[[], object]] = {"plain": probe}
    if device.type == "cuda":
        ways["graph"] = record_cuda(compute)[0]
    figures: dict[str, Any] = {"floor_ms": 1000 * floor, "difference": apart}
    for name, way in ways.items():
        seconds = median_seconds(way, device, quick=quick)
        figures[name] = {"ms": 1000 * seconds, "over_floor": seconds / floor}
    return figures


def segment_inputs(probe: Probe, *, sequences: int, cached: int) -> tuple[Tensor, ...]:
    """Return the rows of a probe as a body of `difflm.decode.forwards` takes them: one segment per sequence."""
    span, device = cached + BLOCK, probe.token_BN.device
    first_S1 = torch.arange(sequences + 1, device=device, dtype=torch.int32) * BLOCK
    base_S1 = torch.arange(sequences + 1, device=device, dtype=torch.int32) * span
    count_S = torch.full((sequences,), span, device=device, dtype=torch.int32)
    return probe.token_BN[0], probe.position_BN[0], probe.attend.entry_N, first_S1, base_S1, count_S


def loaded_of(model: Transformer) -> LoadedModel:
    """Return a model ready for the engine; its last token id is the mask."""
    facts = CheckpointConfig(
        family="llada2_moe" if model.config.moe else "llama",
        model=model.config,
        mask_token_id=model.config.vocab_size - 1,
        block_size=BLOCK,
    )
    return LoadedModel(model, None, facts, Path("random"))


def schedule_rates(
    model: Transformer, *, execution: Execution, requests: int, prompt: int, new_tokens: int, schedules: tuple[int, ...]
) -> dict[str, float]:
    """Return the engine's tokens per second at each forced schedule, all requests together.

    Args:
        model: random weights.
        execution: of the engine.
        requests: decoded together.
        prompt: tokens of each prompt.
        new_tokens: of each answer.
        schedules: denoising forwards per block; each must divide the block.
    """
    loaded, device = loaded_of(model), model.embedding.weight.device
    # Room for what runs and no more: recorded forwards allocate the cache in full.
    tokens = requests * (prompt + new_tokens + BLOCK)
    room = tokens * bytes_per_token(model.config, model.embedding.weight.dtype)
    engine = Engine(loaded, max_requests=requests, cache_bytes=room, execution=execution)
    prompts, rates = random_prompts(loaded.config, requests, prompt), dict[str, float]()
    for forwards in schedules:
        forced = policy("native", fixed=BLOCK // forwards, block_length=BLOCK, gen_length=new_tokens)
        params = SamplingParams(policy=forced, ignore_eos=True)
        seconds = median_seconds(lambda params=params: engine.generate(prompts, params), device, quick=True)
        rates[f"S={forwards}"] = requests * new_tokens / seconds
    return rates


def decode_figures(name: str, device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Return everything about one shape: bandwidth, forwards over their memory floor, tokens per second.

    Args:
        name: of the shape, with random bfloat16 weights.
        device: where it runs; CUDA also records graphs.
        quick: tiny and few.
    """
    config = shape(name, quick=quick)
    model = device_model(config, device=device, dtype=torch.bfloat16)
    bandwidth = copy_bandwidth(device, quick=quick)
    caches, batches, schedules = (
        (QUICK_CACHED, QUICK_BATCHES, QUICK_SCHEDULES) if quick else (CACHED, BATCHES, SCHEDULES)
    )
    figures: dict[str, Any] = {"bandwidth_gb_s": bandwidth / 1e9, "forwards": {}, "tokens_per_second": {}}
    for cached in caches:
        for count in batches:
            figures["forwards"][f"cache {cached}, batch {count}"] = forward_figures(
                model, sequences=count, cached=cached, bandwidth=bandwidth, quick=quick
            )
    executions: tuple[Execution, ...] = ("plain", "graphs") if device.type == "cuda" else ("plain",)
    for execution in executions:
        for count in batches:
            figures["tokens_per_second"][f"{execution}, batch {count}"] = schedule_rates(
                model, execution=execution, requests=count, prompt=caches[0] // BLOCK * BLOCK or BLOCK,
                new_tokens=2 * BLOCK, schedules=schedules,
            )  # fmt: skip
    return figures
