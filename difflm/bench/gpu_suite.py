"""The checks of `make gpu-check`, in their order; each returns a line and figures, or raises."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from difflm.bench import gpu_cases as cases
from difflm.bench import gpu_decode as decode
from difflm.bench import gpu_moe as moe
from difflm.bench.checks import FOR_THE_TRAINER, Check, NotRunError, missing, require
from difflm.bench.environment import environment
from difflm.bench.steps import Forward, median_seconds, random_batch, random_model, shape_of, synchronise
from difflm.diffusion.objectives import BlockDiffusion
from difflm.errors import ConfigError
from difflm.models.attention import AttentionBackend, AttentionChoice, attention_for, backend_for
from difflm.models.config import ModelConfig
from difflm.models.flex import compiled_kernel, kernel_for
from difflm.models.transformer import Attend, Transformer
from difflm.types import ModelInput

BACKENDS: tuple[AttentionBackend, ...] = ("flex", "portable", "split", "dense")
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 2e-3
"""Of one float32 step on the device against the CPU, relative."""

Found = tuple[str, dict[str, Any]]


def checks_for(device: torch.device, *, lengths: Sequence[int], quick: bool) -> list[tuple[str, Check]]:
    """Return the checks of a device, the important ones first.

    Args:
        device: to check.
        lengths: row lengths of the timings, tokens.
        quick: fewer cases and steps.
    """
    found: list[tuple[str, Check]] = []
    for backend in BACKENDS:
        if backend == "split" and device.type != "cpu":
            continue
        for dtype in cases.TOLERANCE:
            name = f"attention parity: {backend}, {str(dtype).removeprefix('torch.')}"
            found.append((name, partial(attention_parity, backend, device, dtype, quick=quick)))
    found.append(("curriculum without recompiling", partial(curriculum, device)))
    found.append(("auto picks a backend", partial(automatic, device)))
    for backend in BACKENDS:
        if backend != "split" and (backend != "flex" or device.type != "cpu"):
            found.append((f"loss and gradients: {backend}", partial(step_parity, backend, device)))
    steps = 8 if quick else 60
    found.append(("training run, float32, against CPU", partial(training, device, torch.float32, steps)))
    found.append(("training run, bfloat16", partial(training, device, torch.bfloat16, steps)))
    found.append(("decoding against CPU", partial(decoding, device, 8 if quick else 32)))
    for family, config in moe.FAMILIES.items():
        found.append((f"{family}: loss and gradients", partial(step_parity, "auto", device, config=config)))
        for dtype in (torch.float32, torch.bfloat16):
            name = f"{family}: training run, {str(dtype).removeprefix('torch.')}"
            found.append((name, partial(training, device, dtype, steps // 2, config=config)))
        found.append((f"{family}: decoding", partial(decoding, device, 8 if quick else 32, config=config)))
    for dtype in moe.TOLERANCE:
        name = f"experts parity: {str(dtype).removeprefix('torch.')}"
        found.append((name, partial(experts_parity, device, dtype, quick=quick)))
    found.append(("router in float32", partial(router_parity, device)))
    for shape in decode.SHAPES:
        found.append((f"blocks of {shape}", partial(decoding_speed, shape, device, quick=quick)))
    found.append(("timings of experts", partial(experts_timings, device, quick=quick)))
    found.append(("trainer: convert, train, resume", partial(trainer, device, 8 if quick else 24)))
    for length in lengths:
        found.append((f"timings, L {length}", partial(timings, device, length, quick=quick)))
    return found


def environment_of(device: torch.device) -> dict[str, str | int | None]:
    """Return where the checks ran: the device's name and capability beside the usual facts."""
    facts = environment()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": properties.name,
            "gpu_memory_gib": properties.total_memory // 2**30,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return facts


def attention_parity(backend: AttentionBackend, device: torch.device, dtype: torch.dtype, *, quick: bool) -> Found:
    """Compare a backend's outputs and gradients with the dense mask in float64, over all layouts."""
    backward = not (backend == "flex" and device.type == "cpu")  # a limit of torch
    worst = {"forward": 0.0, "backward": 0.0}
    count = 0
    for length, two_streams in cases.QUICK_SHAPES if quick else cases.SHAPES:
        for layout in cases.parity_layouts(length, two_streams=two_streams):
            found = cases.attention_difference(backend, layout, device=device, dtype=dtype, backward=backward)
            worst["forward"] = max(worst["forward"], found.forward)
            worst["backward"] = max(worst["backward"], found.backward or 0.0)
            count += 1
    tolerance = cases.TOLERANCE[dtype]
    parts = [f"forward {worst['forward']:.1e}", f"gradients {worst['backward']:.1e}" if backward else "forward only"]
    detail = f"{count} layouts, {', '.join(parts)} (relative to float64; at most {tolerance:.0e})"
    require(max(worst.values()) <= tolerance, detail)
    return detail, {**worst, "layouts": count, "tolerance": tolerance}


def curriculum(device: torch.device) -> Found:
    """Change the block size of FlexAttention and count what is compiled: only the first one may compile."""
    on_cuda = device.type == "cuda"
    kernel = kernel_for("cuda") if on_cuda else compiled_kernel("eager")
    graphs, seconds = list[int](), list[float]()
    before, started = counters["stats"]["unique_graphs"], time.perf_counter()
    sizes = list[int]()
    for size in cases.curriculum_forwards(kernel, device=device, backward=on_cuda):
        synchronise(device)
        now = counters["stats"]["unique_graphs"]
        graphs.append(now - before)
        seconds.append(time.perf_counter() - started)
        sizes.append(size)
        before, started = now, time.perf_counter()
    detail = f"block sizes {sizes}: graphs compiled {graphs}, seconds {[round(each, 2) for each in seconds]}"
    require(not any(graphs[1:]), detail)
    return detail, {"block_sizes": sizes, "graphs": graphs, "seconds": seconds}


def automatic(device: torch.device) -> Found:
    """Resolve "auto"; on CUDA anything but FlexAttention is worth knowing."""
    config = cases.small_config()
    chosen = backend_for("auto", device=device, dtype=torch.bfloat16, head_dim=config.head_dim)
    require(device.type != "cuda" or chosen == "flex", f"auto takes '{chosen}' on {device}")
    return f"'{chosen}'", {"attention": chosen}


def step_parity(backend: AttentionChoice, device: torch.device, config: ModelConfig | None = None) -> Found:
    """Compare loss and gradients of a whole model on the device with those on the CPU, both parametrisations."""
    losses, gradients = list[float](), list[float]()
    for shift in (False, True):
        for recompute in (False, True):
            reference = cases.small_step("auto", shift=shift, config=config)
            expected = cases.loss_and_gradients(reference, device=torch.device("cpu"), config=config)
            forward = cases.small_step(backend, shift=shift, activation_checkpointing=recompute, config=config)
            found = cases.loss_and_gradients(forward, device=device, config=config)
            losses.append(abs(found[0] - expected[0]) / expected[0])
            gradients.append(cases.gradient_difference(found[1], expected[1]))
    detail = f"loss {max(losses):.1e}, gradients {max(gradients):.1e} (relative), activation checkpointing included"
    require(max(losses) <= LOSS_TOLERANCE, detail)
    require(max(gradients) <= GRADIENT_TOLERANCE, detail)
    return detail, {"loss": max(losses), "gradients": max(gradients)}


def training(device: torch.device, dtype: torch.dtype, steps: int, config: ModelConfig | None = None) -> Found:
    """Train a small model on one batch: the loss falls, and in float32 begins as on the CPU."""
    found = cases.training_losses("auto", device=device, steps=steps, dtype=dtype, config=config)
    detail = f"{steps} steps, loss {found[0]:.3f} -> {found[-1]:.3f}"
    require(found[-1] < 0.8 * found[0], f"{detail}: it does not fall")
    figures: dict[str, Any] = {"losses": found}
    if dtype == torch.float32:
        first = min(steps, 8)
        expected = cases.training_losses("auto", device=torch.device("cpu"), steps=first, config=config)
        apart = max(abs(one - two) / two for one, two in zip(found, expected, strict=False))
        detail += f"; the first {first} within {apart:.1e} of the CPU's"
        require(apart < 0.01, detail)
        figures |= {"cpu_losses": expected}
    return detail, figures


def decoding(device: torch.device, new_tokens: int, config: ModelConfig | None = None) -> Found:
    """Decode on the device and on the CPU: greedy answers in float32 are the same, but for ties within rounding."""
    started = time.perf_counter()
    found = cases.decoded(cases.small_loaded(device=device, config=config), new_tokens=new_tokens)
    seconds = time.perf_counter() - started
    reference = cases.small_loaded(device=torch.device("cpu"), config=config)
    expected = cases.decoded(reference, new_tokens=new_tokens)
    share = cases.agreement(found, expected)
    detail = f"{share:.0%} of {len(expected)} answers of {new_tokens} tokens equal the CPU's; {seconds:.1f} s"
    require(share >= 0.75, detail)
    small = cases.small_loaded(device=device, dtype=torch.bfloat16, config=config)
    narrow = cases.decoded(small, new_tokens=new_tokens)
    require(all(len(each) == new_tokens for each in narrow), "bfloat16: an answer is too short")
    return detail, {"agreement": share, "seconds": seconds}


def experts_parity(device: torch.device, dtype: torch.dtype, *, quick: bool) -> Found:
    """Compare sorted experts with a loop over all in float64, and the grouped product and our loop with plain ones."""
    shapes, counts = (moe.QUICK_SHAPES, (8,)) if quick else (moe.SHAPES, (8, 64, 256))
    found = [moe.experts_difference(*each, device=device, dtype=dtype) for each in shapes]
    for count in counts:
        found += [moe.products_difference(count, device=device, dtype=dtype, looped=each) for each in (False, True)]
    forward, backward = max(each.forward for each in found), max(each.backward or 0.0 for each in found)
    tolerance = moe.TOLERANCE[dtype]
    detail = (
        f"{len(found)} cases, forward {forward:.1e}, gradients {backward:.1e} "
        f"(relative to float64; at most {tolerance:.0e})"
    )
    require(max(forward, backward) <= tolerance, detail)
    return detail, {"forward": forward, "backward": backward, "cases": len(found), "tolerance": tolerance}


def router_parity(device: torch.device) -> Found:
    """Compare routers of a bfloat16 model on the device with the CPU's: they compute in float32."""
    worst, shares = 0.0, list[float]()
    for config in moe.FAMILIES.values():
        apart, share = moe.router_difference(config, device=device)
        worst = max(worst, apart)
        shares.append(share)
    detail = f"weights within {worst:.1e}, {min(shares):.2%} of the tokens go to the same experts"
    require(worst <= moe.ROUTER_TOLERANCE and min(shares) >= moe.ROUTER_AGREEMENT, detail)
    return detail, {"weights": worst, "agreement": min(shares)}


def experts_timings(device: torch.device, *, quick: bool) -> Found:
    """Time forward and backward of the product of sorted rows: as the device takes it, and by our loop."""
    figures: dict[str, Any] = {}
    parts = list[str]()
    for dtype in (torch.float32, torch.bfloat16):
        for experts in (8,) if quick else (8, 16, 32, 64, 256):
            grouped, looped = moe.products_seconds(experts, device=device, dtype=dtype, quick=quick)
            name = f"{str(dtype).removeprefix('torch.')}, {experts}"
            figures[name] = {"grouped_ms": 1000 * grouped, "loop_ms": 1000 * looped}
            parts.append(f"{name}: grouped {1000 * grouped:.2f} ms, loop {1000 * looped:.2f} ms")
    return "; ".join(parts), figures


def decoding_speed(shape: str, device: torch.device, *, quick: bool) -> Found:
    """Time forwards of blocks against the memory they touch, and the engine at forced schedules."""
    try:
        figures = decode.decode_figures(shape, device, quick=quick)
    except torch.OutOfMemoryError:
        raise NotRunError(f"{shape} in bfloat16 and its caches do not fit into this device's memory") from None
    way = "graph" if device.type == "cuda" else "plain"
    apart = max(each["difference"] for each in figures["forwards"].values())
    over = {name: each[way]["over_floor"] for name, each in figures["forwards"].items()}
    goal = f"goal {decode.FLOOR_GOAL}: {'met' if max(over.values()) <= decode.FLOOR_GOAL else 'missed'}"
    detail = (
        f"{way} over memory floor ({figures['bandwidth_gb_s']:.0f} GB/s; {goal}): "
        + ", ".join(f"{name} {value:.2f}" for name, value in over.items())
        + "; tokens/s: "
        + ", ".join(
            f"{name} {', '.join(f'{schedule} {rate:.0f}' for schedule, rate in rates.items())}"
            for name, rates in figures["tokens_per_second"].items()
        )
        + f"; attentions within {apart:.1e}"
    )
    require(apart <= decode.TOLERANCE[torch.bfloat16], detail)
    return detail, figures


def trainer(device: torch.device, steps: int) -> Found:
    """Run the whole trainer on the device and on the CPU: convert, train, lose a checkpoint, resume."""
    lacking = missing(FOR_THE_TRAINER)
    if lacking:
        raise NotRunError(f"needs the package {lacking[0]} (missing: {', '.join(lacking)})")
    from difflm.bench.gpu_trainer import trainer_losses

    with tempfile.TemporaryDirectory(prefix="difflm-gpu-check-") as name:
        whole, resumed = trainer_losses(Path(name) / "device", device=str(device), steps=steps)
        narrow, _ = trainer_losses(Path(name) / "narrow", device=str(device), dtype="bfloat16", steps=steps)
        expected, _ = trainer_losses(Path(name) / "cpu", device="cpu", steps=steps)
    first = min(8, len(expected))
    apart = max(abs(one - two) / two for one, two in zip(whole[:first], expected[:first], strict=True))
    again = max(abs(one - two) / two for one, two in zip(whole, resumed, strict=True))
    detail = (
        f"{len(whole)} steps, loss {whole[0]:.3f} -> {whole[-1]:.3f} (bfloat16 {narrow[-1]:.3f}); the first {first} "
        f"within {apart:.1e} of the CPU's, resumed ones within {again:.1e}"
    )
    require(whole[-1] < 0.8 * whole[0], detail)
    require(narrow[-1] < 0.8 * narrow[0], detail)
    require(apart < 0.01, detail)
    require(again < 0.05, detail)
    return detail, {"losses": whole, "resumed": resumed, "bfloat16": narrow, "cpu": expected}


def timings(device: torch.device, length: int, *, quick: bool) -> Found:
    """Time each backend at a row length: its mask, one attention layer, a training step of SmolLM2-135M's shape."""
    figures: dict[str, Any] = {}
    parts = list[str]()
    config = shape_of("smollm2-135m", layers=1 if quick else 0)
    model = random_model(config, device=device, dtype=torch.bfloat16)
    batch = random_batch(config, rows=1, length=length, documents=2)
    for backend in BACKENDS:
        try:
            backend_for(backend, device=device, dtype=torch.bfloat16, head_dim=config.head_dim, backward=True)
        except ConfigError:
            continue
        forward = Forward(objective=BlockDiffusion(block_size=32), batch=batch, attention=backend)
        try:
            figures[backend] = _timed(forward, model, device, quick=quick)
        except torch.OutOfMemoryError:
            figures[backend] = {"out_of_memory": True}
            parts.append(f"{backend} out of memory")
            continue
        found = figures[backend]
        memory = "" if found["peak_mib"] is None else f", {found['peak_mib']:.0f} MiB"
        parts.append(
            f"{backend}: mask {found['mask_ms']:.2f} ms, layer {found['attention_ms']:.2f} ms, "
            f"{found['tokens_per_second']:.0f} tokens/s{memory}"
        )
    return "; ".join(parts), figures


def _timed(forward: Forward, model: Transformer, device: torch.device, *, quick: bool) -> dict[str, float | None]:
    """Return the figures of one backend; forward and backward each time, the optimiser left out."""
    inputs = forward.inputs(model)
    build = partial(_attend, forward, model, inputs)
    attend, tensors = build(), _layer_inputs(model, inputs.token_BN.shape[1])
    mask = median_seconds(build, device, quick=quick)
    layer = median_seconds(lambda: torch.autograd.grad(attend(0, *tensors).sum(), tensors), device, quick=quick)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        forward.loss(model, inputs).backward()

    whole = median_seconds(step, device, quick=quick)
    return {
        "mask_ms": 1000 * mask,
        "attention_ms": 1000 * layer,
        "step_ms": 1000 * whole,
        "tokens_per_second": forward.batch.token_BL.shape[1] / whole,
        "peak_mib": torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None,
    }


def _attend(forward: Forward, model: Transformer, inputs: ModelInput) -> Attend:
    config, weight = model.config, model.embedding.weight
    return attention_for(
        inputs.layout,
        heads_per_group=config.num_heads // config.num_kv_heads,
        dtype=weight.dtype,
        device=weight.device,
        backend=forward.attention,
        head_dim=config.head_dim,
    )


def _layer_inputs(model: Transformer, length: int) -> list[Tensor]:
    """Return query, key and value of one layer."""
    config, weight = model.config, model.embedding.weight
    heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    shapes = [(1, count, length, config.head_dim) for count in heads]
    return [torch.ones(each, device=weight.device, dtype=weight.dtype, requires_grad=True) for each in shapes]
