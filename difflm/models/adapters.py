"""Putting an adapter on a `Transformer`: which weights can carry one, fresh pairs, and the weights with it merged in.

A site is a set of weights that one low-rank pair changes: one weight, or those of a fused matrix (query, key and value
in the files of Ling 2.0), which then share A as they do where the pair stands beside the fused matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from difflm.models.draft_head import DraftHead
from difflm.models.lora import AdapterGate, Linear, LowRank, TokenRows
from difflm.models.moe import Experts
from difflm.models.transformer import Transformer

_PARTS = {"gate_up": 2, "down": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSite:
    """One low-rank pair.

    Attributes:
        weights: names of the weights it changes, without ".weight": "layers.0.attention.query", or
            "layers.1.mlp.experts.gate_up". Several share A; each has rows of B of its own.
        rank: R; of the experts' gate and up each.
        alpha: LoRA's alpha.
        stabilised: rsLoRA: the scale is alpha / sqrt(R) instead of alpha / R.
    """

    weights: tuple[str, ...]
    rank: int
    alpha: float
    stabilised: bool = False

    @property
    def scale(self) -> float:
        """Return the factor on B A."""
        return self.alpha / (math.sqrt(self.rank) if self.stabilised else self.rank)


def adaptable_weights(model: Transformer) -> list[str]:
    """Return the names of the weights that can carry a low-rank pair (see `AdapterSite`), in the model's order."""
    names = []
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            names.append(name)
        elif isinstance(module, Experts):
            names += [f"{name}.{part}" for part in _PARTS]
    return names


def attach_adapter(
    model: Transformer,
    sites: Sequence[AdapterSite],
    *,
    token_ids: tuple[int, ...] = (),
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    gate: AdapterGate = "all",
    draft_rank: int = 0,
) -> None:
    """Put a fresh adapter on a model: it changes nothing yet (B is zero, rows of the embedding are as they were).

    A is uniform in +-1/sqrt(in), which is what PEFT starts from (Kaiming with a = sqrt(5)).

    Args:
        model: without an adapter.
        sites: low-rank pairs.
        token_ids: rows of the embedding that the adapter replaces.
        generator: of A, on the CPU; sites draw in their order. None: A is zero, for one that is read from a file.
        dtype: of the adapter; None: the model's.
        gate: the rows that it is for.
        draft_rank: R of a `DraftHead` for those rows; 0: none.
    """
    assert not adapter_parameters(model), "a model carries one adapter"
    model.adapter_gate = gate
    kind, device = dtype or model.embedding.weight.dtype, model.embedding.weight.device
    for site in sites:
        shared: nn.Parameter | None = None
        for name in site.weights:
            weight, parts = _weight(model, name)
            *count, out, width = weight.shape
            if shared is None:
                shape = (*count, parts * site.rank, width)
                # Drawn on the CPU in float32, so that a run starts alike on every device and in every dtype.
                a = torch.zeros(shape)
                if generator is not None:
                    a.uniform_(-(width**-0.5), width**-0.5, generator=generator)
                shared = nn.Parameter(a.to(device=device, dtype=kind))
            b = nn.Parameter(torch.zeros(*count, out, site.rank, device=device, dtype=kind))
            _place(model, name, LowRank(shared, b, scale=site.scale, parts=parts))
    if token_ids:
        rows = model.embedding.weight.detach()[list(token_ids)].to(kind, copy=True)
        model.token_rows = TokenRows(token_ids, nn.Parameter(rows))
    if draft_rank:
        width = model.config.hidden_size
        down = torch.zeros(draft_rank, 2 * width)
        if generator is not None:
            down.uniform_(-((2 * width) ** -0.5), (2 * width) ** -0.5, generator=generator)
        up = torch.zeros(width, draft_rank)
        halves = (nn.Parameter(each.to(device=device, dtype=kind)) for each in (down, up))
        model.draft_head = DraftHead(*halves)


def adapter_parameters(model: Transformer) -> dict[str, nn.Parameter]:
    """Return the parameters of a model's adapter by name, shared ones once; empty without an adapter."""
    prefixes = {name for name, _ in _adapter_modules(model)} | {"draft_head"}
    return {name: each for name, each in model.named_parameters() if name.rpartition(".")[0] in prefixes}


def remove_adapter(model: Transformer) -> None:
    """Take a model's adapter off; the weights are the base's again, as they were all along."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.lora = None
        elif isinstance(module, Experts):
            module.gate_up_lora = module.down_lora = None
    model.token_rows, model.draft_head, model.adapter_gate = None, None, "all"


def pair_name(weight: str) -> str:
    """Return the name of the module that is the pair beside a weight (see `AdapterSite`)."""
    return f"{weight}_lora" if ".experts." in weight else f"{weight}.lora"


def pair_of(model: Transformer, weight: str) -> LowRank:
    """Return the pair beside a weight (see `AdapterSite`); there must be one."""
    found = model.get_submodule(pair_name(weight))
    assert isinstance(found, LowRank), f"{weight} carries no pair"
    return found


@torch.no_grad()
def merged_tensors(model: Transformer) -> dict[str, Tensor]:
    """Return what a checkpoint holds (`Transformer.stored_tensors`), the adapter merged in: float32, then cast once."""
    assert model.adapter_gate == "all", "weights know no rows: an adapter for noisy rows alone cannot be merged"
    tensors = model.stored_tensors()
    for name, module in _adapter_modules(model):
        if isinstance(module, TokenRows):
            tensors["embedding.weight"] = module.placed(tensors["embedding.weight"].detach())
            continue
        weight = name.removesuffix(".lora") + ".weight" if name.endswith(".lora") else name.removesuffix("_lora")
        base = tensors[weight].detach()
        tensors[weight] = (base.to(torch.promote_types(base.dtype, torch.float32)) + module.delta()).to(base.dtype)
    return tensors


def _adapter_modules(model: Transformer) -> Iterator[tuple[str, LowRank | TokenRows]]:
    for name, module in model.named_modules():
        if isinstance(module, LowRank | TokenRows):
            yield name, module


def _weight(model: Transformer, name: str) -> tuple[Tensor, int]:
    """Return (weight, matrices that lie below each other in it) of a site's weight."""
    owner, _, part = name.rpartition(".")
    holder = model.get_submodule(owner)
    if isinstance(holder, Experts):
        return holder.get_parameter(part), _PARTS[part]
    module = model.get_submodule(name)
    assert isinstance(module, Linear), f"{name} cannot carry a low-rank pair"
    return module.weight, 1


def _place(model: Transformer, weight: str, pair: LowRank) -> None:
    owner, _, part = weight.rpartition(".")
    holder = model.get_submodule(owner)
    if not isinstance(holder, Experts):
        module = model.get_submodule(weight)
        assert isinstance(module, Linear)
        module.lora = pair
    elif part == "gate_up":
        holder.gate_up_lora = pair
    else:
        holder.down_lora = pair
