"""The estimate of a run: its parts put together, as a table and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from difflm.checkpoints.loading import load_without_weights, resolve_dtype
from difflm.data.rows import PackedRows
from difflm.errors import ConfigError
from difflm.estimate.facts import available_memory, model_facts
from difflm.estimate.memory import (
    ParameterMemory,
    StepMemory,
    largest_step,
    parameter_memory,
    peak_memory_of,
    with_reference,
)
from difflm.estimate.probe import probe
from difflm.estimate.speed import MOST_LAYERS, Speed, product_speed, rated_speed, step_operations, warm_up
from difflm.estimate.workload import Workload, workload_of
from difflm.models.attention import AttentionBackend, backend_for
from difflm.models.config import ModelConfig
from difflm.training.build import set_threads
from difflm.training.config import BlockDiffusionConfig, DraftingConfig, PreferenceConfig, TrainConfig
from difflm.training.metrics import resident_memory
from difflm.training.rows import load_rows

ASSUMED_OVERHEAD = 0.3
"""What malloc keeps beside the tensors where it is not measured: 0 to 0.6 of them on the shapes that were tried."""

KERNELS = 330 * 2**20
"""Bytes of the kernels that oneDNN keeps for bfloat16 products on CPU, one for each number of rows and up to 1024: with
experts, whose rows differ in every step, it comes to that (0.2 to 0.4 MiB each, measured)."""

PREFERENCE_NOTE = "dpo: the forwards of the reference, without gradient, are not in the time"
LORA_NOTE = "lora: activations and time are counted as if every weight learned, an upper bound"

LARGEST_DATA = 200 * 2**20
"""Bytes of data files that are packed to find the fill rate; larger ones are not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a run will cost.

    Attributes:
        config: the run.
        model: its architecture.
        backend: of attention.
        workload: steps and stages.
        parameters: bytes of parameters and optimiser.
        step: bytes of the largest micro-batch.
        process: bytes of the program itself (Python, torch, kernels); 0 on an accelerator: it holds tensors only.
        allocator: bytes that the allocator keeps beside tensors at the peak.
        peaks: bytes at the moments that can be the largest one, `process` and `allocator` included.
        speed: seconds; None if they were not asked for or cannot be known here.
        validations: how often the run validates.
        validation_tokens: model tokens of one validation; 0 if its data is not known.
        notes: what was assumed.
    """

    config: TrainConfig
    model: ModelConfig
    backend: AttentionBackend
    workload: Workload
    parameters: ParameterMemory
    step: StepMemory
    process: int
    allocator: int
    peaks: dict[str, int]
    speed: Speed | None
    validations: int
    validation_tokens: int
    notes: tuple[str, ...]

    @property
    def peak(self) -> int:
        """Return the most bytes at once."""
        return max(self.peaks.values())

    @property
    def training_seconds(self) -> float | None:
        """Return the time of all optimiser steps."""
        if self.speed is None:
            return None
        return sum(
            stage.steps * (self.config.accumulation * micro + self.speed.update)
            for stage, micro in zip(self.workload.stages, self.speed.micro_steps, strict=True)
        )

    @property
    def validation_seconds(self) -> float | None:
        """Return the time of all validations."""
        return None if self.speed is None else self.validations * self.validation_tokens * self.speed.forward


def estimate(
    config: TrainConfig, *, fill: float | None = None, measured: bool = True, tflops: float | None = None
) -> Estimate:
    """Return what a run will cost, from its configuration; nothing is trained or written.

    Args:
        config: the run; its model may be the name of a published architecture.
        fill: share of row positions that hold a token; None measures it on the run's data if that is there and small,
            and takes 1 otherwise.
        measured: run a few steps on few layers to find the time, and what the allocator adds to the tensors.
        tflops: sustained speed of the machine that the run is for, 1e12 operations per second; None: this machine.

    Raises:
        DifflmError: a configuration, model or data file that cannot be used.
    """
    facts, notes = model_facts(config), _notes(config)
    if facts.model.max_positions < config.data.row_length:
        raise ConfigError(
            f"train.data.row_length: {config.data.row_length} exceeds the model's context of "
            f"{facts.model.max_positions} tokens; lower it"
        )
    set_threads(config.threads)
    rows, held = _rows(config, notes) if fill is None else (None, None)
    if fill is None and rows is None:
        notes.append("rows are taken to be full of one document each; --fill says how full they are")
    work = workload_of(
        config, facts.parametrisation, mask_id=facts.mask_id, rows=rows, fill=1.0 if fill is None else fill
    )
    dtype = resolve_dtype(config.dtype)
    backend = _backend(config, facts.model, dtype, notes)
    parameters = parameter_memory(facts.model, config.learning, dtype=dtype, lora=config.lora, family=facts.family)
    parameters = with_reference(parameters, config)
    largest = largest_step(config, facts.model, [stage.heaviest for stage in work.stages], backend=backend)
    on_cpu = torch.device(config.device).type == "cpu"
    process = _process(config, facts.model) if on_cpu else 0
    peaks = peak_memory_of(parameters, largest, accumulation=config.accumulation)
    validations, tokens = _validation(config, held)
    speed = _speed(config, facts.model, work, parameters, max(peaks.values()), tflops, notes) if measured else None
    overhead = 0.0
    if on_cpu:
        overhead = ASSUMED_OVERHEAD if speed is None or speed.overhead is None else speed.overhead
        if speed is None or speed.overhead is None:
            notes.append(f"what malloc keeps beside the tensors is taken to be {ASSUMED_OVERHEAD:.0%} of them")
    return Estimate(
        config=config,
        model=facts.model,
        backend=backend,
        workload=work,
        parameters=parameters,
        step=largest,
        process=process,
        allocator=round(overhead * max(peaks.values())),
        peaks={name: process + round((1 + overhead) * value) for name, value in peaks.items()},
        speed=speed,
        validations=validations,
        validation_tokens=tokens,
        notes=tuple(notes),
    )


def _notes(config: TrainConfig) -> list[str]:
    """Return what the figures of a run leave out."""
    notes = [LORA_NOTE] if config.lora is not None else []
    return notes + ([PREFERENCE_NOTE] if isinstance(config.objective, PreferenceConfig) else [])


def _process(config: TrainConfig, model: ModelConfig) -> int:
    """Return the bytes of a CPU run's process beside its tensors."""
    warm_up(config)
    return (resident_memory() or 0) + (KERNELS if model.moe is not None and config.dtype == "bfloat16" else 0)


def _rows(config: TrainConfig, notes: list[str]) -> tuple[PackedRows | None, PackedRows | None]:
    """Return the run's training and validation rows if they are there and small."""
    path = Path(config.model)
    files = [Path(each) for each in config.data.paths]
    if not (path / "config.json").is_file() or not all(each.exists() for each in files):
        return None, None
    inside = [each for file in files for each in (file.rglob("*") if file.is_dir() else [file]) if each.is_file()]
    size = sum(each.stat().st_size for each in inside)
    if size > LARGEST_DATA:
        notes.append(f"{size / 2**20:.0f} MiB of data were not read to find the fill rate")
        return None, None
    loaded = load_without_weights(path)
    return load_rows(config, loaded)


def _backend(config: TrainConfig, model: ModelConfig, dtype: torch.dtype, notes: list[str]) -> AttentionBackend:
    """Return the backend of the run; a device that is not here gets what it has where it is."""
    device = torch.device(config.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        notes.append("no CUDA device here: FlexAttention is taken for attention 'auto'")
        return "flex" if config.attention == "auto" else config.attention
    return backend_for(config.attention, device=device, dtype=dtype, head_dim=model.head_dim)


def _speed(
    config: TrainConfig,
    model: ModelConfig,
    work: Workload,
    parameters: ParameterMemory,
    needed: int,
    tflops: float | None,
    notes: list[str],
) -> Speed | None:
    """Return the run's speed: given, measured on few layers, or bounded by matrix products; None without its device."""
    recompute = config.activation_checkpointing
    batches = [stage.micro_batch for stage in work.stages]
    operations = [step_operations(model, each, active=parameters.active, recompute=recompute) for each in batches]
    tokens = [each.token_BN.numel() for each in batches]
    if tflops is not None:
        return rated_speed(operations, tokens, rate=1e12 * tflops, method=f"at {tflops:g} TFLOP/s sustained, as given")
    if torch.device(config.device).type != "cpu" and not torch.cuda.is_available():
        notes.append(f"no time: device {config.device} is not here; --tflops says what it sustains")
        return None
    # The probe's layers (of both its models) and what stands outside the layers, by their share of all parameters.
    outside = model.vocab_size * model.hidden_size * (1 if model.tied_embeddings else 2)
    share = min(
        (2 * outside + (MOST_LAYERS + 1) * (parameters.parameters - outside) / model.num_layers)
        / parameters.parameters,
        1.0,
    )
    available = available_memory()
    if available is not None and 1.5 * share * needed > 0.5 * available:
        return product_speed(config, model, operations, tokens)
    return probe(config, fill=work.fill)


def _validation(config: TrainConfig, held: PackedRows | None) -> tuple[int, int]:
    """Return (validations of the run, model tokens of each)."""
    if held is None:
        return 0, 0
    settings, final = config.validation, config.block_sizes[-1]
    rows, length = min(settings.rows or len(held), len(held)), config.data.row_length
    objective = config.objective
    if isinstance(objective, DraftingConfig):
        windows = objective.noisy_rows or length
        return 2 + _crossed(config), rows * (settings.draws * (length + windows) + length * settings.autoregressive)
    diffusion = isinstance(objective, BlockDiffusionConfig)
    sizes: list[int] = sorted({*settings.block_sizes, *([final] if final else [])}) if diffusion else []
    # Two streams below the row length; one draw suffices at block size 1.
    streams = sum((2 if size < length else 1) * (1 if size == 1 else settings.draws) for size in sizes)
    return 2 + _crossed(config), rows * length * (streams + settings.autoregressive)


def _crossed(config: TrainConfig) -> int:
    """Return the validations between the first and the last."""
    every = [each for each in (config.validation.every_tokens, config.checkpoint.every_tokens) if each]
    return max((config.total_tokens // each for each in every), default=0)


def estimate_tree(found: Estimate) -> dict[str, Any]:
    """Return an estimate as JSON values; bytes, tokens and seconds."""
    parameters, step, work = found.parameters, found.step, found.workload
    seconds = found.training_seconds
    return {
        "model": {
            "name": str(found.config.model),
            "parameters": parameters.parameters,
            "active_parameters": parameters.active,
            "layers": found.model.num_layers,
        },
        "steps": work.steps,
        "tokens": sum(stage.tokens for stage in work.stages),
        "tokens_per_step": work.tokens_per_step,
        "rows_per_step": work.rows_per_step,
        "fill": {"rate": work.fill, "measured": work.measured_fill},
        "stages": [
            {
                "block_size": stage.block_size,
                "tokens": stage.tokens,
                "steps": stage.steps,
                "mask_share": stage.mask_share,
                "model_tokens_per_forward": stage.model_tokens,
                "scored_rows_per_forward": stage.scored_rows,
                "seconds_per_step": found.config.accumulation * found.speed.micro_steps[index] + found.speed.update
                if found.speed
                else None,
            }
            for index, stage in enumerate(work.stages)
        ],
        "memory": {
            "process": found.process,
            "allocator": found.allocator,
            "weights": parameters.weights,
            "master_copies": parameters.masters,
            "gradients": parameters.gradients + parameters.working_gradients,
            "optimizer": parameters.optimizer,
            "activations": step.activations + step.recomputed,
            "attention_masks": step.masks,
            "logits": step.logits,
            "peaks": found.peaks,
            "peak": found.peak,
        },
        "time": {
            "training_seconds": seconds,
            "validation_seconds": found.validation_seconds,
            "tokens_per_second": sum(stage.tokens for stage in work.stages) / seconds if seconds else None,
            "method": found.speed.method if found.speed else None,
        },
        "attention": found.backend,
        "notes": list(found.notes),
    }


def estimate_lines(found: Estimate) -> list[str]:
    """Return an estimate as lines for a reader."""
    tree, config = estimate_tree(found), found.config
    model, memory, timing = tree["model"], tree["memory"], tree["time"]
    active = f", {model['active_parameters']:,} active" if model["active_parameters"] != model["parameters"] else ""
    lines = [
        f"model       {model['name']}: {model['parameters']:,} parameters{active}, {model['layers']} layers",
        f"run         {tree['steps']:,} steps, {tree['tokens']:,} tokens, {tree['tokens_per_step']:,.0f} a step "
        f"({tree['rows_per_step']} rows of {config.data.row_length}, fill {tree['fill']['rate']:.1%}"
        f"{'' if tree['fill']['measured'] else ' assumed'})",
        f"computes    {config.dtype} on {config.device}, attention {tree['attention']}"
        + (", activation checkpointing" if config.activation_checkpointing else ""),
        "",
        f"{'stage':<8}{'block':>7}{'tokens':>16}{'steps':>9}{'masked':>8}{'rows scored':>13}{'s/step':>9}",
    ]
    for number, stage in enumerate(tree["stages"]):
        share = "-" if stage["mask_share"] is None else f"{stage['mask_share']:.0%}"
        pace = "-" if stage["seconds_per_step"] is None else f"{stage['seconds_per_step']:.3g}"
        lines.append(
            f"{number:<8}{stage['block_size'] or '-':>7}{stage['tokens']:>16,}{stage['steps']:>9,}{share:>8}"
            f"{stage['scored_rows_per_forward']:>13,}{pace:>9}"
        )
    names = (
        "weights",
        "master_copies",
        "gradients",
        "optimizer",
        "activations",
        "attention_masks",
        "logits",
        "allocator",
        "process",
    )
    lines += ["", *(f"{name.replace('_', ' '):<18}{bytes_text(memory[name]):>12}" for name in names if memory[name])]
    when = max(found.peaks, key=lambda name: found.peaks[name])
    lines += [f"{'peak':<18}{bytes_text(memory['peak']):>12}  ({when})", ""]
    if timing["training_seconds"] is not None:
        lines.append(
            f"time        {duration_text(timing['training_seconds'])} of training, {timing['tokens_per_second']:,.0f} "
            f"tokens/s; {duration_text(timing['validation_seconds'] or 0)} of validation ({timing['method']})"
        )
    return [*lines, *(f"note        {note}" for note in tree["notes"])]


def bytes_text(value: int) -> str:
    """Return bytes for a reader."""
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"


def duration_text(seconds: float) -> str:
    """Return a time for a reader."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
