"""Low-rank adapters: what they add to a linear map, to the experts of a layer, and to rows of the embedding.

Source: LoRA, arXiv:2106.09685, section 4.1: y = W x + scale * B A x with A [R, in], B [out, R] and scale = alpha / R;
rsLoRA, arXiv:2312.03732: alpha / sqrt(R). Names and layout of files: `difflm.checkpoints.adapter_names`.

Shape legend: see `difflm.types`; R rank, P pairs of a token and one of its experts, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

AdapterRows = bool | slice | Tensor
"""Which rows an adapter acts on: all, none (bit for bit the model without it), a run of places, or those of a bool
tensor [B, N]."""
AdapterGate = Literal["all", "noisy"]
"""Which rows an adapter is for: every row, or those of a noisy stream alone, so that clean rows stay the base's."""


class LowRank(nn.Module):
    """A pair of low-rank matrices beside a frozen weight.

    Args:
        a: A, [R, in]; for experts stacked, [E, parts * R, in].
        b: B, [out, R]; for experts [E, out, R]. Part p of the output rows belongs to part p of A.
        scale: factor on B A.
        parts: matrices that lie below each other in the weight (gate and up of experts: 2), each with a pair of its
            own.
    """

    def __init__(self, a: nn.Parameter, b: nn.Parameter, *, scale: float, parts: int = 1) -> None:
        super().__init__()
        self.a, self.b = a, b
        self.scale, self.parts = scale, parts

    def forward(self, hidden: Tensor) -> Tensor:
        """Return what the pair adds to the output of a linear map, [..., out]."""
        return F.linear(F.linear(hidden, self.a), self.b) * self.scale

    def delta(self) -> Tensor:
        """Return what the pair adds to the weight: scale * B A, in the shape of the weight; float32 at least."""
        return weight_delta(self.a, self.b, scale=self.scale, parts=self.parts)


def weight_delta(a: Tensor, b: Tensor, *, scale: float, parts: int = 1) -> Tensor:
    """Return scale * B A of a pair (see `LowRank`), float32 at least."""
    wide = torch.promote_types(a.dtype, torch.float32)
    pairs = zip(a.to(wide).chunk(parts, dim=-2), b.to(wide).chunk(parts, dim=-2), strict=True)
    return torch.cat([right @ left for left, right in pairs], dim=-2) * scale


def with_delta(out: Tensor, delta: Tensor, rows: AdapterRows) -> Tensor:
    """Return out + delta on the rows an adapter acts on, and `out` as it is, bit for bit, on the others.

    Args:
        out: [..., out].
        delta: the same shape.
        rows: True, or bool of the shape of `out` without its last dimension.
    """
    added = out + delta
    return torch.where(rows[..., None], added, out) if isinstance(rows, Tensor) else added


def adapted(out: Tensor, pair: Callable[[Tensor], Tensor], hidden: Tensor, rows: AdapterRows) -> Tensor:
    """Return the output of a linear map with what a pair adds on its rows; of a run of places in place, and only there.

    Args:
        out: [B, N, out], which nobody else has.
        pair: rows of the input to what is added.
        hidden: input of the map.
        rows: not False.
    """
    if not isinstance(rows, slice):
        return with_delta(out, pair(hidden), rows)
    out[:, rows] += pair(hidden[:, rows])
    return out


def row_mask(rows: AdapterRows, token_BN: Tensor) -> bool | Tensor:
    """Return the rows an adapter acts on without a run of places: it becomes bool [B, N].

    Args:
        rows: of tokens.
        token_BN: anything of their shape, on their device.
    """
    if not isinstance(rows, slice):
        return rows
    mask_BN = torch.zeros(token_BN.shape[:2], dtype=torch.bool, device=token_BN.device)
    mask_BN[:, rows] = True
    return mask_BN


class Linear(nn.Linear):
    """A linear map that an adapter may stand beside (`lora`; None where there is none)."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.lora: LowRank | None = None

    def operands(self) -> tuple[Tensor, Tensor | None]:
        """Return what `product` takes beside the input: tensors with an entry for each output."""
        return self.weight, self.bias

    @staticmethod
    def product(hidden: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        """Return the map of the last dimension alone; nobody else has the result."""
        return F.linear(hidden, weight_OI, bias_O)

    def forward(self, hidden: Tensor, adapter: AdapterRows = True) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the map of the last dimension, plus the adapter's part on its rows."""
        out = self.product(hidden, *self.operands())
        if self.lora is None or adapter is False:
            return out
        return adapted(out, self.lora, hidden, adapter)


class TokenRows(nn.Module):
    """Rows that stand in for those of the embedding.

    Args:
        token_ids: whose rows.
        weight: [T, D], one row for each id.
    """

    def __init__(self, token_ids: tuple[int, ...], weight: nn.Parameter) -> None:
        super().__init__()
        self.token_ids, self.weight = token_ids, weight

    def forward(self, hidden_BND: Tensor, token_BN: Tensor, adapter: AdapterRows) -> Tensor:
        """Return the embedded tokens with the rows put in, [B, N, D]."""
        rows = row_mask(adapter, token_BN)
        for token_id, row_D in zip(self.token_ids, self.weight, strict=True):
            chosen_BN = token_BN == token_id
            if not isinstance(rows, bool):
                chosen_BN = chosen_BN & rows
            # Not an indexed lookup: the gradient of that is added up in any order on CUDA.
            hidden_BND = torch.where(chosen_BN[..., None], row_D, hidden_BND)
        return hidden_BND

    def placed(self, weight_VD: Tensor) -> Tensor:
        """Return an embedding or head with the rows put in; differentiable in both."""
        index_T = torch.tensor(self.token_ids, device=weight_VD.device)
        return weight_VD.index_copy(0, index_T, self.weight.to(weight_VD.dtype))
