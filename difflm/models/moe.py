"""Mixture of experts: the router of Ling 2.0 and LLaDA2 and that of Qwen3-MoE, and experts as stacked tensors.

Shape legend: see `difflm.types`; N tokens (of all rows), E experts, K experts per token, P = N * K pairs of a token
and one of its experts, sorted by expert, I inner width of an expert.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from difflm.models.config import ModelConfig, MoEConfig
from difflm.models.lora import AdapterRows, LowRank, row_mask, with_delta
from difflm.models.mlp import MLP


class RouterProbe(Protocol):
    """Measures the routers of one forward; training takes its load statistics and its losses on routers from here.

    Two halves, so that a layer that is computed again (activation checkpointing) counts once: `measure` belongs to the
    layer's computation and only computes; `record` receives each layer's result, after the layer's first computation.
    """

    def measure(self, logit_NE: Tensor, expert_NK: Tensor) -> tuple[Tensor, ...]:
        """Return whatever `record` needs, in the graph of the logits where it has a gradient."""
        ...

    def record(self, layer: int, measured: tuple[Tensor, ...]) -> None:
        """Take in the result of `measure` of one layer."""
        ...


class Router(nn.Module):
    """Chooses each token's experts and their weights; computes in float32 at least, whatever the model's dtype.

    Args:
        hidden_size: D.
        config: rule of the choice.
    """

    def __init__(self, hidden_size: int, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, hidden_size))
        if not self.weight.is_meta:  # nothing to draw there, and asking for it would import torch's compiler (seconds)
            nn.init.normal_(self.weight, std=hidden_size**-0.5)
        # A buffer: no gradient, but part of the checkpoint.
        self.expert_bias = nn.Buffer(torch.zeros(config.num_experts)) if config.expert_bias else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        """Move with the model, but never below float32: differences of the bias are far smaller than its values."""
        before = self.expert_bias
        super()._apply(fn, recurse)
        if before is not None and self.expert_bias is not None:
            wide = torch.promote_types(self.expert_bias.dtype, torch.float32)
            if wide != self.expert_bias.dtype:
                self.expert_bias = before.to(device=self.expert_bias.device, dtype=wide)
        return self

    def forward(self, hidden_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Return (weights, experts), each [N, K]: float32 at least, and int64."""
        return self.choose(self.logits(hidden_ND))

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Return the scores before sigmoid or softmax, [N, E], float32 at least."""
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            return F.linear(hidden_ND.to(wide), self.weight.to(wide))

    def choose(self, logit_NE: Tensor) -> tuple[Tensor, Tensor]:
        """Return (weights, experts), each [N, K], from the logits."""
        return choose_experts(logit_NE, self.expert_bias, self.config)


def choose_experts(logit_NE: Tensor, bias_E: Tensor | None, config: MoEConfig) -> tuple[Tensor, Tensor]:
    """Return (weights, experts), each [N, K], from router logits.

    Source: the group-limited, aux-loss-free routing of DeepSeek-V3 (arXiv:2412.19437, section 2.1.2) as Ling 2.0 and
    LLaDA2 use it: experts are chosen by score plus bias, inside the groups whose two best sum highest, and weighed by
    the score alone. Qwen3-MoE: softmax over all experts, no groups.

    Args:
        logit_NE: router logits.
        bias_E: added for the choice only.
        config: rule of the choice.
    """
    score_NE = logit_NE.sigmoid() if config.score == "sigmoid" else logit_NE.softmax(dim=-1)
    # The choice has no gradient.
    choice_NE = score_NE.detach() if bias_E is None else score_NE.detach() + bias_E
    if config.groups > 1:
        grouped_NGM = choice_NE.unflatten(-1, (config.groups, -1))
        kept_NG = grouped_NGM.topk(2, dim=-1).values.sum(-1).topk(config.groups_kept, dim=-1).indices
        outside_NG1 = torch.ones_like(grouped_NGM[..., 0], dtype=torch.bool).scatter(-1, kept_NG, False)[..., None]
        choice_NE = grouped_NGM.masked_fill(outside_NG1, -torch.inf).flatten(-2)
    expert_NK = choice_NE.topk(config.experts_per_token, dim=-1).indices
    weight_NK = score_NE.gather(-1, expert_NK)
    if config.normalise:
        weight_NK = weight_NK / (weight_NK.sum(-1, keepdim=True) + 1e-20)
    return weight_NK * config.scaling, expert_NK


class Experts(nn.Module):
    """All experts of a layer: gated feed-forwards, their matrices stacked (gate rows before up rows).

    Args:
        hidden_size: D.
        config: number and width.
    """

    def __init__(self, hidden_size: int, config: MoEConfig) -> None:
        super().__init__()
        count, inner = config.num_experts, config.expert_size
        self.gate_up = nn.Parameter(torch.empty(count, 2 * inner, hidden_size))
        self.down = nn.Parameter(torch.empty(count, hidden_size, inner))
        for matrix, fan_in in ((self.gate_up, hidden_size), (self.down, inner)):
            nn.init.uniform_(matrix, -(fan_in**-0.5), fan_in**-0.5)
        self.gate_up_lora: LowRank | None = None
        self.down_lora: LowRank | None = None

    def forward(self, hidden_ND: Tensor, weight_NK: Tensor, expert_NK: Tensor, adapter: bool | Tensor = True) -> Tensor:
        """Return the weighted sum of each token's experts, [N, D]; summed in the dtype of the weights, then cast.

        Args:
            hidden_ND: tokens.
            weight_NK: weights of the router.
            expert_NK: its choice.
            adapter: True, False, or bool [N] (see `Transformer.forward`).
        """
        count, pairs = self.gate_up.shape[0], expert_NK.flatten()
        order_P = pairs.argsort(stable=True)
        back_P = order_P.argsort()
        stop_E = torch.searchsorted(pairs[order_P], torch.arange(count, device=pairs.device), right=True)
        rows_PD = _Reorder.apply(hidden_ND, order_P, back_P, expert_NK.shape[1])
        rows_P = adapter if isinstance(adapter, bool) else adapter[order_P // expert_NK.shape[1]]
        gate_up_PI = _adapted(rows_PD, self.gate_up, stop_E, self.gate_up_lora, rows_P)
        gate_PI, up_PI = gate_up_PI.chunk(2, dim=-1)
        out_PD = _adapted(F.silu(gate_PI) * up_PI, self.down, stop_E, self.down_lora, rows_P)
        out_NKD = _Reorder.apply(out_PD, back_P, order_P, 1).unflatten(0, expert_NK.shape)
        return (out_NKD * weight_NK[..., None]).sum(1).to(hidden_ND.dtype)


def _adapted(rows: Tensor, weight: Tensor, stops: Tensor, lora: LowRank | None, adapter: bool | Tensor) -> Tensor:
    """Return `grouped_linear`, plus the part of a low-rank pair per expert on the adapter's rows."""
    out = grouped_linear(rows, weight, stops)
    if lora is None or adapter is False:
        return out
    inner = grouped_linear(rows, lora.a, stops).chunk(lora.parts, dim=-1)
    halves = zip(inner, lora.b.chunk(lora.parts, dim=1), strict=True)
    # A copy: kernels of the grouped product want each operand's rows together.
    delta = torch.cat([grouped_linear(part.contiguous(), b.contiguous(), stops) for part, b in halves], dim=-1)
    return with_delta(out, delta * lora.scale, adapter)


class MoE(nn.Module):
    """Feed-forward branch of a sparse layer: routed experts, plus an expert that every token passes (if any)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        moe = config.moe
        assert moe is not None, "a dense architecture has no experts"
        self.router = Router(config.hidden_size, moe)
        self.experts = Experts(config.hidden_size, moe)
        inner = moe.shared_experts * moe.shared_size
        self.shared = MLP(config.hidden_size, inner, bias=False) if inner else None

    def forward(
        self, hidden_BND: Tensor, probe: RouterProbe | None = None, adapter: AdapterRows = True
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return (feed-forward branch [B, N, D], what the probe measured: nothing without one)."""
        hidden_ND = hidden_BND.flatten(0, 1)
        rows = row_mask(adapter, hidden_BND)
        adapter_N = rows.flatten() if isinstance(rows, Tensor) else rows
        logit_NE = self.router.logits(hidden_ND)
        weight_NK, expert_NK = self.router.choose(logit_NE)
        out_BND = self.experts(hidden_ND, weight_NK, expert_NK, adapter_N).view_as(hidden_BND)
        if self.shared is not None:
            out_BND = out_BND + self.shared(hidden_BND, adapter)
        return out_BND, probe.measure(logit_NE, expert_NK) if probe is not None else ()


class _Reorder(torch.autograd.Function):
    """Rows in another order, each repeated `copies` times; the gradient is gathered, never added atomically."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, back: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(back)
        ctx.copies = copies
        return rows.index_select(0, order // copies if copies > 1 else order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (back,) = ctx.saved_tensors
        return grad.index_select(0, back).unflatten(0, (-1, ctx.copies)).sum(1), None, None, None


def grouped_linear(rows_PD: Tensor, weight_EOD: Tensor, stop_E: Tensor) -> Tensor:
    """Return each row times the (transposed) matrix of its group, [P, O].

    Args:
        rows_PD: rows, those of a group together, groups in order.
        weight_EOD: one matrix per group.
        stop_E: int64, where each group's rows end.
    """
    # torch's grouped product has kernels for bfloat16 on GPUs; on CPU it is a loop in C++, bit for bit ours and never
    # slower (benchmarks/moe.py). Our loop takes every dtype and size.
    aligned = all(size * rows_PD.element_size() % 16 == 0 for size in weight_EOD.shape[1:])
    narrow, on_cpu = rows_PD.dtype == torch.bfloat16, rows_PD.device.type == "cpu"
    if aligned and (narrow or (on_cpu and rows_PD.dtype == torch.float32)):
        return F.grouped_mm(rows_PD, weight_EOD.transpose(1, 2), offs=stop_E.to(torch.int32))
    return looped_linear(rows_PD, weight_EOD, stop_E)


def looped_linear(rows_PD: Tensor, weight_EOD: Tensor, stop_E: Tensor) -> Tensor:
    """Return what `grouped_linear` returns by a product per group, on every device, dtype and size.

    Args:
        rows_PD: rows, those of a group together, groups in order.
        weight_EOD: one matrix per group.
        stop_E: int64, where each group's rows end.
    """
    return _LoopedLinear.apply(rows_PD, weight_EOD, stop_E)


class _LoopedLinear(torch.autograd.Function):
    """A product per group that has rows; results and gradients are written in place, nothing is stacked."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, stops: Tensor) -> Tensor:
        ctx.spans = _spans(stops)
        ctx.save_for_backward(rows, weight)
        out = rows.new_empty(rows.shape[0], weight.shape[1])
        for group, start, stop in ctx.spans:
            torch.mm(rows[start:stop], weight[group].t(), out=out[start:stop])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for group, start, stop in ctx.spans:
            if grad_rows is not None:
                torch.mm(grad[start:stop], weight[group], out=grad_rows[start:stop])
            if grad_weight is not None:
                torch.mm(grad[start:stop].t(), rows[start:stop], out=grad_weight[group])
        return grad_rows, grad_weight, None


def _spans(stops: Tensor) -> list[tuple[int, int, int]]:
    """Return (group, start, stop) of each group that has rows."""
    edges = itertools.pairwise([0, *stops.tolist()])
    return [(group, start, stop) for group, (start, stop) in enumerate(edges) if stop > start]
