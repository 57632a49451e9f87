"""What the GPU check compares: attention cases, a small model, the same steps on CPU and device.

Only torch, numpy and safetensors are needed here; the run of the whole trainer is in `difflm.bench.gpu_trainer`.

Shape legend: see `difflm.types`; H query heads, G key/value heads, E head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from difflm.bench.steps import Forward, random_batch, random_model
from difflm.checkpoints.config import CheckpointConfig
from difflm.checkpoints.loading import LoadedModel
from difflm.decode.engine import generate
from difflm.decode.request import SamplingParams
from difflm.diffusion.masks import block_numbers, document_positions, layout_mask, materialise
from difflm.diffusion.objectives import BlockDiffusion
from difflm.models.attention import AttentionBackend, AttentionChoice, DenseAttention, attention_for
from difflm.models.config import ModelConfig, RopeConfig
from difflm.models.flex import FlexAttention, FlexKernel
from difflm.models.transformer import Transformer
from difflm.types import Layout, Parametrisation

HEADS, GROUPS, WIDTH = 6, 2, 64
SHAPES = ((256, True), (200, True), (333, False))
"""Row lengths, and whether both streams are there: multiples of the kernels' 128 and others."""

QUICK_SHAPES = ((72, True),)

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2}
"""Largest difference to float64, relative to the largest number compared."""


def small_config() -> ModelConfig:
    """Return a model of three layers, big enough for the kernels of a GPU."""
    return ModelConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        norm_eps=1e-6,
        rope=RopeConfig(),
        max_positions=4096,
    )


def packed_documents(length: int) -> Tensor:
    """Return two rows, int64 [2, L]: one document; and three documents with padding behind them."""
    document_BL = torch.zeros(2, length, dtype=torch.int64)
    first, second = length // 3, length // 2
    document_BL[1, first:second], document_BL[1, second:], document_BL[1, length - 11 :] = 1, 2, -1
    return document_BL


def parity_layouts(length: int, *, two_streams: bool) -> Iterator[Layout]:
    """Yield layouts of one shape: block sizes, causal options and a narrowed view, all over packed rows."""
    document_BL = packed_documents(length)
    position_BL = document_positions(document_BL)
    for size in (1, 4, 32, length):
        plain = Layout(
            document_BL=document_BL, block_BL=block_numbers(position_BL, block_size=size), two_streams=two_streams
        )
        yield plain
        if size == 32:
            yield replace(plain, causal_inside=True)
            yield replace(plain, clean_causal=True)
            yield replace(plain, causal_inside=True, clean_causal=True)
            yield replace(plain, lookahead=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Largest differences to float64, relative to the largest number compared.

    Attributes:
        forward: of the outputs.
        backward: of the gradients of queries, keys and values; None where there is no backward.
    """

    forward: float
    backward: float | None


def attention_difference(
    backend: AttentionBackend, layout: Layout, *, device: torch.device, dtype: torch.dtype, backward: bool
) -> Difference:
    """Compare a backend with the dense mask in float64, real tokens only.

    Args:
        backend: to compare.
        layout: attention structure.
        device: where both run.
        dtype: of the backend's numbers.
        backward: also compare gradients.
    """
    rows, streams = layout.document_BL.shape[0], 1 + layout.two_streams
    length = streams * layout.document_BL.shape[1]
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, heads, length, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    narrow = [torch.randn(each, generator=generator).to(device, dtype) for each in shapes]
    real = (layout.document_BL >= 0).repeat(1, streams)[:, None, :, None].to(device)
    cotangent = torch.randn(shapes[0], generator=generator).to(device, dtype) * real
    wide = [each.double() for each in narrow]
    for each in [*narrow, *wide]:
        each.requires_grad_(backward)
    dense = DenseAttention(materialise(layout_mask(layout), rows, length).to(device))
    expected = dense(0, *wide)
    attend = attention_for(
        layout, heads_per_group=HEADS // GROUPS, dtype=dtype, device=device, backend=backend, head_dim=WIDTH
    )
    found = attend(0, *narrow)
    forward = relative_difference(found * real, expected * real)
    if not backward:
        return Difference(forward=forward, backward=None)
    expected_grads = torch.autograd.grad((expected * cotangent.double()).sum(), wide)
    grads = torch.autograd.grad((found * cotangent).sum(), narrow)
    pairs = zip(grads, expected_grads, strict=True)
    return Difference(forward=forward, backward=max(relative_difference(one, two) for one, two in pairs))


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest expected number; infinite for what is not finite."""
    if not bool(found.isfinite().all()):
        return float("inf")
    return float((found.detach().double() - expected.detach()).abs().max() / expected.detach().abs().max())


def curriculum_forwards(kernel: FlexKernel, *, device: torch.device, backward: bool) -> Iterator[int]:
    """Run FlexAttention at one block size after the other, yielding each size.

    Args:
        kernel: a compiled one; the caller counts what it compiles.
        device: of the tensors.
        backward: also run backward.
    """
    document_BL = packed_documents(256)
    position_BL = document_positions(document_BL)
    shapes = [(2, heads, 512, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    inputs = [torch.ones(each, device=device).requires_grad_(backward) for each in shapes]
    for size in (1, 4, 32, 64, 256, 128, 32):
        layout = Layout(document_BL=document_BL, block_BL=block_numbers(position_BL, block_size=size), two_streams=True)
        out = FlexAttention(layout, device=device, kernel=kernel)(0, *inputs)
        if backward:
            torch.autograd.grad(out.sum(), inputs)
        yield size


def small_step(
    backend: AttentionChoice,
    *,
    shift: bool = False,
    activation_checkpointing: bool = False,
    config: ModelConfig | None = None,
) -> Forward:
    """Return a training forward of packed rows, with padding, for the small model.

    Args:
        backend: of the attention.
        shift: the shifted parametrisation with its AR term instead of the paper's.
        activation_checkpointing: recompute the layers in the backward pass.
        config: another model than the small one.
    """
    parametrisation = Parametrisation(logit_shift=True, clean_attention="causal") if shift else Parametrisation()
    return Forward(
        objective=BlockDiffusion(block_size=8, ar_weight=0.5 if shift else 0.0, parametrisation=parametrisation),
        batch=random_batch(config or small_config(), rows=2, length=120, documents=3, padding=7),
        attention=backend,
        activation_checkpointing=activation_checkpointing,
    )


def loss_and_gradients(
    forward: Forward, *, device: torch.device, dtype: torch.dtype = torch.float32, config: ModelConfig | None = None
) -> tuple[float, dict[str, Tensor]]:
    """Return the loss of the small model and its gradients, on the CPU in float64."""
    model = random_model(config or small_config(), device=device, dtype=dtype, std=0.05)
    loss = forward.loss(model)
    loss.backward()
    gradients = {
        name: parameter.grad.cpu().double()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return float(loss.detach()), gradients


def gradient_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest difference of a parameter's gradient, relative to its norm."""
    return max(float((found[name] - value).norm() / value.norm()) for name, value in expected.items())


def training_losses(
    backend: AttentionChoice,
    *,
    device: torch.device,
    steps: int,
    dtype: torch.dtype = torch.float32,
    config: ModelConfig | None = None,
) -> list[float]:
    """Return the losses of a short training run of the small model on one batch, fixed noise."""
    model = random_model(config or small_config(), device=device, dtype=dtype, std=0.05)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    forward, losses = small_step(backend, config=config), list[float]()
    for _ in range(steps):
        loss = forward.loss(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def small_loaded(
    *, device: torch.device, dtype: torch.dtype = torch.float32, config: ModelConfig | None = None
) -> LoadedModel:
    """Return a random model whose answers vary, ready to decode."""
    model: Transformer = random_model(config or small_config(), device=device, dtype=dtype, std=0.15).eval()
    facts = CheckpointConfig(
        family="llama",
        model=model.config,
        mask_token_id=model.config.vocab_size - 1,
        block_size=8,
        eos_token_ids=(0,),
    )
    return LoadedModel(model, None, facts, Path("random"))


def decoded(loaded: LoadedModel, *, new_tokens: int) -> list[list[int]]:
    """Return the answers to a few prompts, block by block and then token by token."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(1, 500, (size,), generator=generator).tolist() for size in (3, 8, 13, 21)]
    answers: list[list[int]] = []
    for decoding in ("block", "next_token"):
        params = SamplingParams(decoding=decoding, max_new_tokens=new_tokens, ignore_eos=True, threshold=0.5)
        answers += [list(each.tokens) for each in generate(loaded, prompts, params)]
    return answers


def agreement(found: list[list[int]], expected: list[list[int]]) -> float:
    """Return the share of answers that are equal token for token."""
    return sum(one == two for one, two in zip(found, expected, strict=True)) / len(expected)
