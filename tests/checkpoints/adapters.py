"""Models with adapters for tests: one on every place that a family's files have, every number random."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from difflm.checkpoints.adapter import AdapterFacts, adapter_of
from difflm.checkpoints.adapter_names import adapter_layout
from difflm.checkpoints.families import FAMILIES
from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.models.adapters import AdapterSite, adapter_parameters, attach_adapter
from difflm.models.lora import AdapterGate
from tests.checkpoints.tiny import hf_folder, ling_folder

BASES = ("llama", "tied", "qwen2", "qwen3", "qwen3_moe", "llada2_moe")


def base_folder(folder: Path, name: str) -> Path:
    """Write a tiny base: a family by name, or "tied", a Llama whose head is its embedding."""
    if name == "llada2_moe":
        return ling_folder(folder, model_type=name)
    hf_folder(folder, "llama" if name == "tied" else name, tie_word_embeddings=name == "tied")
    return folder


def adapted(
    base: Path,
    *,
    rank: int = 3,
    alpha: float = 6.0,
    stabilised: bool = False,
    token_ids: tuple[int, ...] = (5,),
    dtype: str = "float32",
    only: str = "",
    gate: AdapterGate = "all",
    draft_rank: int = 0,
    seed: int = 0,
) -> LoadedModel:
    """Return a base with a pair on every place (whose first weight contains `only`), all numbers random."""
    loaded = load_model(base, dtype=dtype)
    layout = adapter_layout(FAMILIES[loaded.config.family], loaded.config.model)
    sites = tuple(
        AdapterSite(weights=place.weights, rank=rank, alpha=alpha, stabilised=stabilised)
        for place in layout.places
        if only in place.weights[0]
    )
    generator = torch.Generator().manual_seed(seed)
    attach_adapter(loaded.model, sites, token_ids=token_ids, generator=generator, gate=gate, draft_rank=draft_rank)
    with torch.no_grad():
        for parameter in adapter_parameters(loaded.model).values():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    facts = AdapterFacts(sites=sites, token_ids=token_ids, gate=gate, draft_rank=draft_rank, base=str(base))
    return replace(loaded, adapter=facts)


def same_adapter(one: LoadedModel, two: LoadedModel) -> bool:
    """Return whether two models carry the same adapter, bit for bit."""
    assert one.adapter is not None
    assert two.adapter is not None
    mine, theirs = (adapter_of(each.model, each.adapter).tensors for each in (one, two) if each.adapter)
    return (
        one.adapter.sites == two.adapter.sites
        and mine.keys() == theirs.keys()
        and all(torch.equal(mine[name], theirs[name]) for name in mine)
    )
