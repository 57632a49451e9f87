"""Linear maps with 8-bit weights for decoding on CPU: codes in memory, products of integers.

A weight is held as one int8 code per number and one scale per output row. A row of activations becomes two rows of
codes, coarse and fine (16 bits together), with a scale of its own: a row's result is exact integer arithmetic and does
not depend on the rows beside it. One row of codes would be too few: a few inputs of a map are far larger than the
others, and rounding at their scale loses the rest (benchmarks/2026-11-29-int8.md).

Shape legend: see `difflm.types`; N rows, I inputs and O outputs of a map.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from difflm.errors import ConfigError
from difflm.models.config import ModelConfig
from difflm.models.lora import AdapterGate, AdapterRows, Linear, adapted

Weights = Literal["float", "int8"]
LARGEST = 127
"""Codes are -127 .. 127: a scale is the largest magnitude of its row over this."""
FINE = 2 * LARGEST
"""Steps of the fine codes in one of the coarse ones, whose rounding leaves half a step on either side."""


class QuantisedLinear(nn.Module):
    """y = scale_O * scale_N * (code_OI coarse_NI + code_OI fine_NI / FINE) + bias, in place of `Linear`, for inference.

    Source: LLM.int8() (arXiv:2208.07339), section 2.2, row-wise on both sides; fine codes instead of outlier columns.

    Args:
        linear: the map to hold; its weight is read, not kept. A low-rank pair beside it stays as it is.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        wide_OI = linear.weight.detach().float()
        scale_O1 = _scales(wide_OI)
        self.code_OI = nn.Buffer((wide_OI / scale_O1).round_().to(torch.int8))
        self.scale_O = nn.Buffer(scale_O1[:, 0].clone())
        self.bias: Tensor | None
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())
        self.dtype = linear.weight.dtype
        self.lora = linear.lora if isinstance(linear, Linear) else None

    @property
    def weight(self) -> Tensor:
        """Return what the codes stand for, [O, I], in the dtype of the weight they were made from; a copy."""
        return (self.code_OI * self.scale_O[:, None]).to(self.dtype)

    def operands(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what `product` takes beside the input: tensors with an entry for each output."""
        return self.code_OI, self.scale_O, self.bias

    @staticmethod
    def product(hidden: Tensor, code_OI: Tensor, scale_O: Tensor, bias_O: Tensor | None) -> Tensor:
        """Return the map of the last dimension alone; each output is computed by itself, and nobody else has them."""
        wide_NI = hidden.flatten(0, -2).float()
        scale_N1 = _scales(wide_NI)
        wide_NI = wide_NI / scale_N1
        coarse_NI = wide_NI.round()
        fine_NI = wide_NI.sub_(coarse_NI).mul_(FINE).round_()
        code_NI = torch.cat([coarse_NI, fine_NI]).to(torch.int8)
        # Sums of products of two codes fit into int32 up to 2**17 inputs: they are exact, in whatever order.
        coarse_NO, fine_NO = torch.ops.aten._int_mm(code_NI, code_OI.t()).chunk(2)
        out_NO = (coarse_NO + fine_NO / FINE).mul_(scale_N1)
        out_NO *= scale_O
        if bias_O is not None:
            out_NO += bias_O
        return out_NO.to(hidden.dtype).view(*hidden.shape[:-1], len(scale_O))

    def forward(self, hidden: Tensor, adapter: AdapterRows = True) -> Tensor:
        """Return the map of the last dimension, plus the adapter's part on its rows."""
        out = self.product(hidden, *self.operands())
        return out if self.lora is None or adapter is False else adapted(out, self.lora, hidden, adapter)


def _scales(wide_NI: Tensor) -> Tensor:
    """Return a float32 scale for each row, [N, 1]; rows of zeros divide by something."""
    return wide_NI.abs().amax(-1, keepdim=True).clamp_min_(torch.finfo(torch.float32).tiny * LARGEST) / LARGEST


@cache
def has_products() -> bool:
    """Return whether this processor multiplies 8-bit numbers fast (VNNI), and the kernels that are used sum exactly.

    The second is tried: oneDNN can be held to older kernels (ONEDNN_MAX_CPU_ISA), which add two products in 16 bits.
    """
    if not torch.cpu._is_vnni_supported():
        return False
    code_KK = torch.full((64, 64), LARGEST, dtype=torch.int8)
    return bool((torch.ops.aten._int_mm(code_KK, code_KK) == 64 * LARGEST**2).all())


def check_weights(
    weights: Weights, config: ModelConfig, *, device: str | torch.device, gate: AdapterGate | None
) -> None:
    """Refuse a way of holding weights that a model or a device does not have.

    Args:
        weights: the way.
        config: architecture.
        device: of the model.
        gate: rows that the model's adapter is for; None without one. One for every row is better merged.

    Raises:
        ConfigError: 'int8' with experts, with an adapter for every row, or anywhere but on a CPU with exact products
            of 8-bit numbers.
    """
    if weights not in get_args(Weights):
        raise ConfigError(f"weights: {weights!r} is unknown; use {' or '.join(map(repr, get_args(Weights)))}")
    reason = None
    if weights == "int8" and config.moe is not None:
        reason = "is for dense models, and this one has experts"
    elif weights == "int8" and gate == "all":
        reason = "is not for a base under an adapter; merge it first (difflm merge)"
    elif weights == "int8" and torch.device(device).type != "cpu":
        reason = f"is for CPU, and the device is {device}"
    elif weights == "int8" and not has_products():
        reason = "needs a CPU with exact products of 8-bit numbers (VNNI), and this one has none"
    if reason:
        raise ConfigError(f"weights: 'int8' {reason}; or use 'float', with dtype bfloat16")


def quantise(model: nn.Module) -> None:
    """Hold every linear map of a dense model in int8, the head included; the embedding and the norms stay.

    A head that is the embedding gets codes of its own: the embedding's rows are still read as they are.

    Args:
        model: what `check_weights` lets through; changed in place, for inference only.
    """
    for name, linear in [(name, each) for name, each in model.named_modules() if isinstance(each, nn.Linear)]:
        model.set_submodule(name, QuantisedLinear(linear))


def is_quantised(model: nn.Module) -> bool:
    """Return whether a model's linear maps are held in int8 (`quantise`)."""
    return any(isinstance(each, QuantisedLinear) for each in model.modules())
