"""Attention over a `Layout`: the dense reference and the exact split that never builds an N x N mask.

The split cuts each row into tiles of whole blocks. The queries of a tile see (a) the clean prefix of their document,
all of it, without a mask, and (b) their own tile, through a small mask. Both parts are merged exactly by their
log-sum-exp; the backward calls the kernel's backward for each part with the merged output and log-sum-exp (the
identity of ring attention). Work and memory follow what is visible, not (2L)^2.

Shape legend: see `difflm.types`; H query heads, G key/value heads, E head dimension, T tokens of a tile,
Q = (H / G) * (query rows of a tile): grouped-query heads are folded into query rows, so K and V are never repeated.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from difflm.errors import ConfigError
from difflm.models.flex import FlexAttention, flex_refusal
from difflm.models.ranges import dense_mask, key_ranges
from difflm.models.tiles import TILE, Tile, split_tiles
from difflm.models.transformer import Attend
from difflm.types import Layout

AttentionBackend = Literal["split", "portable", "flex", "dense"]
AttentionChoice = Literal["auto", "split", "portable", "flex", "dense"]


@dataclass(frozen=True, slots=True)
class DenseAttention:
    """Reference: one scaled dot product with a boolean mask over all pairs of a query and a key.

    Attributes:
        mask_B1NN: bool, True = visible; every row must see something (padding sees padding).
    """

    mask_B1NN: Tensor

    def __call__(self, layer: int, query_BHNE: Tensor, key_BGNE: Tensor, value_BGNE: Tensor) -> Tensor:
        """Return the mixed values, [B, H, N, E]."""
        return F.scaled_dot_product_attention(
            query_BHNE, key_BGNE, value_BGNE, attn_mask=self.mask_B1NN, enable_gqa=True
        )


class SplitAttention:
    """The exact split, for one layout; reused by every layer and by forward and backward.

    Args:
        layout: attention structure of the batch.
        heads_per_group: H / G.
        dtype: of the queries (the additive tile masks are kept in it).
        device: of the queries.
        backend: "split": the CPU's fused kernel with the log-sum-exp merge; "portable": masked scaled dot products
            under plain autograd, for any device. Both are exact.
        tile: tokens per tile.
        noisy_only: the queries are the noisy rows alone, the keys all model rows.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        heads_per_group: int,
        dtype: torch.dtype,
        device: torch.device | str,
        backend: Literal["split", "portable"] = "split",
        tile: int = TILE,
        noisy_only: bool = False,
    ) -> None:
        self.tiles = split_tiles(layout, tile=tile, noisy_only=noisy_only)
        self.backend = backend
        additive: list[Tensor | None] = []
        for each in self.tiles:
            if each.mask_TT is None:
                additive.append(None)
                continue
            bias = torch.zeros(each.mask_TT.shape, dtype=dtype).masked_fill_(~each.mask_TT, -torch.inf)
            additive.append(bias.repeat(heads_per_group, 1).to(device))
        self.bias_QT = additive

    def __call__(self, layer: int, query_BHNE: Tensor, key_BGNE: Tensor, value_BGNE: Tensor) -> Tensor:
        """Return the mixed values, [B, H, N, E], N the queries; zeros on padding."""
        if self.backend == "split":
            return _MergedTiles.apply(query_BHNE, key_BGNE, value_BGNE, self.tiles, self.bias_QT)
        return self._portable(query_BHNE, key_BGNE, value_BGNE)

    def _portable(self, query_BHNE: Tensor, key_BGNE: Tensor, value_BGNE: Tensor) -> Tensor:
        out = torch.zeros_like(query_BHNE)
        groups = key_BGNE.shape[1]
        for each, bias_QT in zip(self.tiles, self.bias_QT, strict=True):
            query_1GQE = _fold(query_BHNE[each.row], each.queries_T, groups)
            spans = (each.prefix, *each.rows_T)
            key = torch.cat([key_BGNE[each.row, :, span] for span in spans], dim=1)[None]
            value = torch.cat([value_BGNE[each.row, :, span] for span in spans], dim=1)[None]
            mask = None
            if bias_QT is not None:
                prefix = bias_QT.new_zeros(bias_QT.shape[0], each.prefix.stop - each.prefix.start)
                mask = torch.cat([prefix, bias_QT], dim=1)
            mixed = F.scaled_dot_product_attention(query_1GQE, key, value, attn_mask=mask)
            _unfold_into(out[each.row], each.queries_T, mixed)
        return out


def _fold(query_HNE: Tensor, rows: tuple[slice, ...], groups: int) -> Tensor:
    """Return the tile's queries with the heads of a group stacked as rows: [1, G, Q, E]."""
    return _gather(query_HNE, rows).reshape(1, groups, -1, query_HNE.shape[-1])


def _unfold_into(out_HNE: Tensor, rows: tuple[slice, ...], mixed_1GQE: Tensor) -> None:
    """Write folded results back to the tile's rows."""
    part = mixed_1GQE.reshape(out_HNE.shape[0], -1, out_HNE.shape[-1])
    start = 0
    for span in rows:
        count = span.stop - span.start
        out_HNE[:, span] = part[:, start : start + count]
        start += count


def _gather(value_GNE: Tensor, rows: tuple[slice, ...]) -> Tensor:
    """Return the given rows, [1, G, T, E]."""
    parts = [value_GNE[None, :, span] for span in rows]
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


def _scatter_add(out_GNE: Tensor, rows: tuple[slice, ...], grad_1GTE: Tensor) -> None:
    start = 0
    for span in rows:
        count = span.stop - span.start
        out_GNE[:, span] += grad_1GTE[0, :, start : start + count]
        start += count


class _MergedTiles(torch.autograd.Function):
    """All tiles of a layer; forward and backward of each part by the CPU's fused attention kernel."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, tiles: list[Tile], bias: list[Tensor | None]
    ) -> Tensor:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, totals = torch.zeros_like(query), []
        groups = key.shape[1]
        for each, bias_QT in zip(tiles, bias, strict=True):
            folded = _fold(query[each.row], each.queries_T, groups)
            mixed, total = kernel(
                folded, _gather(key[each.row], each.rows_T), _gather(value[each.row], each.rows_T), attn_mask=bias_QT
            )
            if each.prefix.stop > each.prefix.start:
                before, before_total = kernel(
                    folded, key[each.row, None, :, each.prefix], value[each.row, None, :, each.prefix]
                )
                merged = torch.logaddexp(total, before_total)
                mixed = mixed * (total - merged).exp()[..., None] + before * (before_total - merged).exp()[..., None]
                mixed, total = mixed.to(query.dtype), merged
            _unfold_into(out[each.row], each.queries_T, mixed)
            totals.append(total)
        ctx.save_for_backward(query, key, value, out, *totals)
        ctx.tiles, ctx.bias = tiles, bias
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        saved = ctx.saved_tensors  # once: where activations are computed again, a second look is an error
        dtype = saved[0].dtype
        # Several tiles add to the same prefix keys, which are summed in float32 even for bfloat16 models; and on short
        # tiles (up to some 200 keys) the kernel is two to four times slower in bfloat16.
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        query, key, value, out, *totals = (each.to(wide) for each in saved)
        grad_out = grad_out.to(wide)
        grad_query, grad_key, grad_value = (torch.zeros_like(each) for each in (query, key, value))
        groups = key.shape[1]
        for each, bias_QT, total in zip(ctx.tiles, ctx.bias, totals, strict=True):
            folded = _fold(query[each.row], each.queries_T, groups)
            folded_out = _fold(out[each.row], each.queries_T, groups)
            folded_grad = _fold(grad_out[each.row], each.queries_T, groups)
            parts: list[tuple[tuple[slice, ...], Tensor | None]] = [(each.rows_T, bias_QT)]
            if each.prefix.stop > each.prefix.start:
                parts.append(((each.prefix,), None))
            part_query: Tensor | None = None
            for rows, part_bias in parts:
                grads = kernel(
                    folded_grad,
                    folded,
                    _gather(key[each.row], rows),
                    _gather(value[each.row], rows),
                    folded_out,
                    total,
                    0.0,
                    False,
                    attn_mask=None if part_bias is None else part_bias.to(wide),
                )
                part_query = grads[0] if part_query is None else part_query + grads[0]
                _scatter_add(grad_key[each.row], rows, grads[1])
                _scatter_add(grad_value[each.row], rows, grads[2])
            assert part_query is not None
            _unfold_into(grad_query[each.row], each.queries_T, part_query)
        return grad_query.to(dtype), grad_key.to(dtype), grad_value.to(dtype), None, None


def fused_kernel_available(device: torch.device | str) -> bool:
    """Return whether the fused kernel of the "split" backend exists for a device (CPU; a private name of torch)."""
    if torch.device(device).type != "cpu":
        return False
    try:
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default  # noqa: B018
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default  # noqa: B018
    except AttributeError:
        warnings.warn("this torch has no fused CPU attention kernel: using the portable form, slower", stacklevel=2)
        return False
    return True


def backend_for(
    choice: AttentionChoice,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    head_dim: int | None = None,
    backward: bool = False,
    field: str = "attention",
) -> AttentionBackend:
    """Return the backend that a choice means on a device: "auto" is the fastest exact one that works there.

    CPU: "split". CUDA: "flex", or "portable" where FlexAttention does not work, said once. Other devices: "portable".

    Args:
        choice: a backend, or "auto".
        device: of the model.
        dtype: of the model.
        head_dim: E, if known.
        backward: gradients are wanted.
        field: names the choice in errors.

    Raises:
        ConfigError: a backend that does not work there, or an unknown one.
    """
    device = torch.device(device)
    if choice == "auto":
        if device.type == "cuda":
            refusal = flex_refusal(device, dtype=dtype, head_dim=head_dim)
            if refusal is None:
                return "flex"
            warnings.warn(f"{field}: FlexAttention cannot be used ({refusal}): 'portable', slower", stacklevel=2)
            return "portable"
        return "split" if fused_kernel_available(device) else "portable"
    if choice not in get_args(AttentionBackend):
        raise ConfigError(f"{field}: '{choice}' is unknown; use {', '.join(map(repr, get_args(AttentionChoice)))}")
    refusal = flex_refusal(device, dtype=dtype, head_dim=head_dim) if choice == "flex" else None
    if choice == "flex" and backward and device.type == "cpu":
        refusal = "it has no backward there (a limit of torch)"
    if choice == "split" and not fused_kernel_available(device):
        refusal = "its kernel is for CPU" if device.type != "cpu" else "this torch has no such kernel"
    if refusal:
        raise ConfigError(f"{field}: '{choice}' does not work on {device}: {refusal}; use 'auto' or 'portable'")
    return choice


def attention_for(
    layout: Layout,
    *,
    heads_per_group: int,
    dtype: torch.dtype,
    device: torch.device | str,
    backend: AttentionChoice = "auto",
    head_dim: int | None = None,
    noisy_only: bool = False,
) -> Attend:
    """Return the exact attention of a layout: "split" on CPU, FlexAttention on CUDA, or a named backend.

    Args:
        layout: attention structure.
        heads_per_group: query heads per key/value head.
        dtype: of the model.
        device: of the model.
        backend: see `backend_for`. "dense" keeps an N x N mask: the reference.
        head_dim: E, if known.
        noisy_only: the queries are the noisy rows alone, the keys all model rows.

    Raises:
        ConfigError: a backend that does not work there.
    """
    chosen = backend_for(backend, device=device, dtype=dtype, head_dim=head_dim)
    if chosen == "flex":
        return FlexAttention(layout, device=device, noisy_only=noisy_only)
    if chosen == "dense":
        return DenseAttention(dense_mask(key_ranges(layout, noisy_only=noisy_only).to(device)))
    return SplitAttention(
        layout,
        heads_per_group=heads_per_group,
        dtype=dtype,
        device=device,
        backend=chosen,
        noisy_only=noisy_only,
    )
