"""Mixtures of experts in the GPU check: sorted experts, routers and timings; two small models of the families.

Shape legend: see `difflm.models.moe`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from difflm.bench.gpu_cases import Difference, relative_difference, small_config
from difflm.bench.steps import median_seconds, random_model
from difflm.models.config import ModelConfig, MoEConfig
from difflm.models.moe import Experts, MoE, grouped_linear, looped_linear

LING = MoEConfig(
    num_experts=16, experts_per_token=4, expert_size=64, score="sigmoid", groups=4, groups_kept=2, expert_bias=True,
    scaling=2.5, shared_experts=1, shared_size=64, dense_layers=(0,),
)  # fmt: skip
QWEN = MoEConfig(num_experts=16, experts_per_token=4, expert_size=64, score="softmax")
FAMILIES: dict[str, ModelConfig] = {
    "llada2_moe": replace(small_config(), qk_norm=True, moe=LING),
    "qwen3_moe": replace(small_config(), qk_norm=True, moe=QWEN),
}
"""Small models of both kinds of router."""

SHAPES = ((8, 2, 128, 64), (16, 4, 128, 64), (64, 8, 256, 128), (256, 8, 256, 64), (8, 2, 34, 22))
"""Experts, experts per token, hidden size, inner width; the last one is not aligned: no device has a kernel for it."""

QUICK_SHAPES = (SHAPES[0], SHAPES[-1])

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2}
"""Largest difference to float64, relative to the largest number compared."""

ROUTER_TOLERANCE, ROUTER_AGREEMENT = 1e-4, 0.999
"""Of weights, and the share of tokens whose experts are the CPU's: the rest are ties within rounding."""

TOKENS = 512


def experts_difference(
    experts: int, per_token: int, hidden_size: int, inner: int, *, device: torch.device, dtype: torch.dtype
) -> Difference:
    """Compare a layer's experts with a loop over all of them in float64; one expert gets no token.

    Args:
        experts: E.
        per_token: K.
        hidden_size: D.
        inner: I.
        device: where both run.
        dtype: of the layer.
    """
    layer, hidden_ND, weight_NK, expert_NK = _case(experts, per_token, hidden_size, inner, device, dtype)
    tensors = [hidden_ND.requires_grad_(), *layer.parameters()]
    wide = [each.detach().double().requires_grad_() for each in tensors]
    expected_ND = _plain(wide[0], wide[1], wide[2], weight_NK.double(), expert_NK)
    return _difference(layer(hidden_ND, weight_NK, expert_NK), tensors, expected_ND, wide)


def products_difference(experts: int, *, device: torch.device, dtype: torch.dtype, looped: bool) -> Difference:
    """Compare the product of sorted rows and their experts' matrices with one product per row in float64.

    Args:
        experts: E; every third one has no row.
        device: where both run.
        dtype: of rows and matrices.
        looped: take our loop whatever the device has.
    """
    generator = torch.Generator().manual_seed(0)
    count_E = torch.randint(1, 9, (experts,), generator=generator) * (torch.arange(experts) % 3 > 0)
    rows_PD = torch.randn(int(count_E.sum()), 64, generator=generator).to(device, dtype)
    weight_EOD = torch.randn(experts, 48, 64, generator=generator).to(device, dtype)
    tensors = [rows_PD.requires_grad_(), weight_EOD.requires_grad_()]
    wide = [each.detach().double().requires_grad_() for each in tensors]
    product = looped_linear if looped else grouped_linear
    owner_P = torch.repeat_interleave(torch.arange(experts), count_E).to(device)
    expected_PO = (wide[1][owner_P] @ wide[0][..., None])[..., 0]
    return _difference(product(rows_PD, weight_EOD, count_E.cumsum(0).to(device)), tensors, expected_PO, wide)


def _difference(found: Tensor, tensors: list[Tensor], expected: Tensor, wide: list[Tensor]) -> Difference:
    """Return the differences of outputs and of the gradients of the tensors they were made from."""
    cotangent = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(found.device, found.dtype)
    grads = torch.autograd.grad(found, tensors, cotangent)
    expected_grads = torch.autograd.grad(expected, wide, cotangent.double())
    pairs = zip(grads, expected_grads, strict=True)
    return Difference(
        forward=relative_difference(found, expected),
        backward=max(relative_difference(one, two) for one, two in pairs),
    )


def _case(
    experts: int, per_token: int, hidden_size: int, inner: int, device: torch.device, dtype: torch.dtype
) -> tuple[Experts, Tensor, Tensor, Tensor]:
    """Return a layer, hidden states, weights and choices; the last expert is never chosen."""
    generator = torch.Generator().manual_seed(0)
    config = MoEConfig(num_experts=experts, experts_per_token=per_token, expert_size=inner, score="softmax")
    layer = Experts(hidden_size, config)
    with torch.no_grad():
        for matrix in layer.parameters():
            matrix.normal_(std=matrix.shape[-1] ** -0.5, generator=generator)
    score_NE = torch.randn(TOKENS, experts, generator=generator)
    score_NE[:, -1] = -100.0
    weight_NK, expert_NK = score_NE.softmax(-1).topk(per_token, dim=-1)
    hidden_ND = torch.randn(TOKENS, hidden_size, generator=generator)
    return layer.to(device, dtype), hidden_ND.to(device, dtype), weight_NK.to(device), expert_NK.to(device)


def _plain(hidden_ND: Tensor, gate_up: Tensor, down: Tensor, weight_NK: Tensor, expert_NK: Tensor) -> Tensor:
    """Return the weighted sum over all experts, weight 0 where one was not chosen."""
    out = torch.zeros_like(hidden_ND)
    for expert in range(gate_up.shape[0]):
        gate, up = (hidden_ND @ gate_up[expert].T).chunk(2, dim=-1)
        each = (F.silu(gate) * up) @ down[expert].T
        out = out + each * (weight_NK * (expert_NK == expert)).sum(-1, keepdim=True)
    return out


@torch.no_grad()
def router_difference(config: ModelConfig, *, device: torch.device) -> tuple[float, float]:
    """Return (largest difference of a weight, share of tokens with the CPU's experts) over the routers of a model.

    Args:
        config: of a small model, made in bfloat16.
        device: to compare with the CPU.
    """
    here = random_model(config, device=device, dtype=torch.bfloat16, std=0.05)
    there = random_model(config, device="cpu", dtype=torch.bfloat16, std=0.05)
    hidden_ND = torch.randn(TOKENS, config.hidden_size, generator=torch.Generator().manual_seed(0)).bfloat16()
    apart, same = 0.0, list[float]()
    for one, two in zip(here.layers, there.layers, strict=True):
        if not isinstance(one.mlp, MoE) or not isinstance(two.mlp, MoE):
            continue
        weight_NK, expert_NK = (each.cpu() for each in one.mlp.router(hidden_ND.to(device)))
        expected_NK, chosen_NK = two.mlp.router(hidden_ND)
        assert weight_NK.dtype == torch.float32, f"a router computed in {weight_NK.dtype}"
        equal_N = (expert_NK.sort().values == chosen_NK.sort().values).all(-1)
        same.append(float(equal_N.double().mean()))
        found, expected = (each.sort().values[equal_N] for each in (weight_NK, expected_NK))
        apart = max(apart, float((found - expected).abs().max()))
    return apart, min(same)


def products_seconds(experts: int, *, device: torch.device, dtype: torch.dtype, quick: bool) -> tuple[float, float]:
    """Return the median seconds of forward and backward of one product: (as the device takes it, by our loop).

    Args:
        experts: E; 16,384 rows of 1024 numbers, matrices of 1024 x 1024 (quick: 1024, 256, 256).
        device: where it runs.
        dtype: of rows and matrices.
        quick: smaller and fewer.
    """
    size, rows = (256, 1024) if quick else (1024, 16_384)
    rows_PD = torch.ones(rows, size, device=device, dtype=dtype, requires_grad=True)
    weight_EOD = torch.ones(experts, size, size, device=device, dtype=dtype, requires_grad=True)
    stop_E = torch.arange(1, experts + 1, device=device) * rows // experts
    cotangent_PO = torch.ones_like(rows_PD)

    def step(product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(product(rows_PD, weight_EOD, stop_E), (rows_PD, weight_EOD), cotangent_PO)

    grouped, looped = (
        median_seconds(lambda product=each: step(product), device, quick=quick)
        for each in (grouped_linear, looped_linear)
    )
    return grouped, looped
