"""A base that is ready to be drafted for, and an adapter that knows nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from difflm import LoadedModel, convert, load_model
from difflm.checkpoints.adapter import AdapterFacts
from difflm.checkpoints.adapter_names import adapter_layout
from difflm.checkpoints.families import FAMILIES
from difflm.checkpoints.loading import load_without_weights
from difflm.models.adapters import AdapterSite, adapter_parameters, attach_adapter

BLOCK_SIZE = 16
"""Largest window of a base that is converted here."""


def drafting_base(model: Path, work: Path) -> Path:
    """Return a checkpoint with a token-causal clean stream: the one given, or its conversion, in the work folder.

    Args:
        model: folder or GGUF file.
        work: folder for what is written.
    """
    if model.is_dir() and load_without_weights(model).config.clean_attention == "causal":
        return model
    target = work / "base"
    if not target.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        convert(
            model,
            target,
            block_size=BLOCK_SIZE,
            logit_shift=True,
            clean_attention="causal",
            noisy_attention="causal",
        )
    return target


def random_drafter(base: Path, *, dtype: str = "float32", rank: int = 8, scale: float = 0.02) -> LoadedModel:
    """Return a base with an untrained gated adapter of random numbers: its drafts are nearly all wrong.

    Args:
        base: a converted checkpoint.
        dtype: of the parameters.
        rank: of the pairs.
        scale: standard deviation of what is added to every number.
    """
    loaded = load_model(base, dtype=dtype)
    layout = adapter_layout(FAMILIES[loaded.config.family], loaded.config.model)
    sites = tuple(AdapterSite(weights=place.weights, rank=rank, alpha=2.0 * rank) for place in layout.places)
    generator = torch.Generator().manual_seed(0)
    attach_adapter(loaded.model, sites, generator=generator, gate="noisy")
    with torch.no_grad():
        for parameter in adapter_parameters(loaded.model).values():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return replace(loaded, adapter=AdapterFacts(sites=sites, gate="noisy", base=str(base)))
