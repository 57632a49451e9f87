"""Adapter folders in PEFT's format: read, written, put on a model, merged into the weights of their base.

adapter_config.json         PEFT's fields; the base by path or hub id
adapter_model.safetensors   the low-rank pairs and rows of the embedding, by the module names of the base's files
difflm.json                 what PEFT has no field for: sha256 of the base, fields of config.json that the run changed
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from difflm.checkpoints.adapter_config import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    GATE,
    adapter_config,
    read_adapter_config,
)
from difflm.checkpoints.adapter_names import TOKEN_ROWS, AdapterLayout, adapter_layout, pairs_from_disk, pairs_to_disk
from difflm.checkpoints.families import Family
from difflm.checkpoints.fields import one_line, read_optional_json, write_json
from difflm.checkpoints.hf import PICKLE_SUFFIXES, save_tensors
from difflm.checkpoints.manifest import hash_files
from difflm.checkpoints.rules import stored_dtype
from difflm.errors import CheckpointError
from difflm.models.adapters import AdapterSite, adapter_parameters, attach_adapter, pair_name
from difflm.models.config import ModelConfig
from difflm.models.lora import AdapterGate, weight_delta
from difflm.models.transformer import Transformer

FACTS = "difflm.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFacts:
    """What an adapter is, without its numbers.

    Attributes:
        sites: its low-rank pairs.
        token_ids: rows of the embedding that it replaces.
        gate: rows of the model that it acts on.
        draft_rank: of its draft head (`difflm.models.draft_head`); 0: it has none.
        base: path or hub id of its base; None where its files do not say.
        revision: commit of the base on the hub.
        base_sha256: hash of the base's configuration and weights (`digest_of`); "" for one that difflm did not write.
        updates: fields of config.json that differ from the base's.
    """

    sites: tuple[AdapterSite, ...]
    token_ids: tuple[int, ...] = ()
    gate: AdapterGate = "all"
    draft_rank: int = 0
    base: str | None = None
    revision: str | None = None
    base_sha256: str = ""
    updates: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """An adapter in memory.

    Attributes:
        facts: what it is.
        tensors: its numbers, by their names in a model that carries it (`difflm.models.adapters`).
    """

    facts: AdapterFacts
    tensors: Mapping[str, Tensor]

    def delta(self, weight: str, experts: range | None = None) -> Tensor | None:
        """Return what it adds to a weight (named as in `AdapterSite`), float32 at least; None: nothing.

        Args:
            weight: which.
            experts: those wanted of a stack; None: all.
        """
        for site in self.facts.sites:
            if weight in site.weights:
                a, b = self.tensors[f"{pair_name(site.weights[0])}.a"], self.tensors[f"{pair_name(weight)}.b"]
                if experts is not None:
                    a, b = a[experts.start : experts.stop], b[experts.start : experts.stop]
                return weight_delta(a, b, scale=site.scale, parts=a.shape[-2] // site.rank)
        return None


@dataclass(frozen=True, slots=True, eq=False)
class AdapterMean:
    """The weighted mean of adapters of one base, merged into its weights one by one.

    The deltas are averaged, not A and B: the mean of products is not the product of means.

    Attributes:
        members: adapters.
        shares: of each, adding up to 1.
        dtype: of the merged weights; None keeps that of the base's.
    """

    members: tuple[Adapter, ...]
    shares: tuple[float, ...] = (1.0,)
    dtype: torch.dtype | None = None

    def merged(self, name: str, base: Tensor, experts: range | None = None) -> Tensor:
        """Return a parameter of the base with the adapters merged in: summed in float32 at least, cast once.

        Args:
            name: of the parameter.
            base: its stored value; returned as it is where no adapter changes it and no dtype is asked for.
            experts: those that `base` holds of a stack; None: all.
        """
        kind = base.dtype if self.dtype is None else stored_dtype(name, self.dtype)
        wide = torch.promote_types(base.dtype, torch.float32)
        if name == "embedding.weight":
            return self._with_rows(base.to(wide)).to(kind)
        total: Tensor | None = None
        for member, share in zip(self.members, self.shares, strict=True):
            delta = member.delta(name.removesuffix(".weight"), experts)
            if delta is not None:
                total = share * delta if total is None else total + share * delta
        return (base if total is None else base.to(wide) + total).to(kind)

    def _with_rows(self, weight_VD: Tensor) -> Tensor:
        """Return the embedding with the mean of the rows that each member has: its own, or the base's."""
        out_VD = weight_VD.clone()
        for token_id in sorted({token_id for member in self.members for token_id in member.facts.token_ids}):
            rows = [self._row(member, token_id, weight_VD) for member in self.members]
            first, *others = (share * row for share, row in zip(self.shares, rows, strict=True))
            out_VD[token_id] = sum(others, first)
        return out_VD

    @staticmethod
    def _row(member: Adapter, token_id: int, weight_VD: Tensor) -> Tensor:
        ids = member.facts.token_ids
        return member.tensors[TOKEN_ROWS][ids.index(token_id)].to(weight_VD) if token_id in ids else weight_VD[token_id]


def refuse_gated(facts: AdapterFacts, where: str) -> None:
    """Refuse to merge an adapter that acts on noisy rows alone.

    Args:
        facts: of the adapter.
        where: names what would be merged, for the error.

    Raises:
        CheckpointError: it is one.
    """
    if facts.gate == "noisy":
        raise CheckpointError(
            f"{where}: its adapter acts on noisy rows alone ({GATE} in {ADAPTER_CONFIG}); merged into the weights it "
            "would change what is written left to right as well. Keep the two apart: difflm merge (in Python "
            "difflm.save_adapter) writes the adapter as a folder of its own, load_model reads it with its base; for "
            f"left-to-right use take the base, difflm export {facts.base} TARGET"
        )


def read_adapter(folder: Path, family: Family, config: ModelConfig) -> Adapter:
    """Return the adapter of a folder, for a base of a family and architecture.

    Raises:
        CheckpointError: files that are damaged, do not fit the base, or hold what is not implemented.
    """
    told = read_adapter_config(folder)
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        pickled = sorted(each.name for each in folder.iterdir() if each.suffix in PICKLE_SUFFIXES)
        reason = f"only {pickled[0]}, which is never opened (pickle can run code)" if pickled else "it is missing"
        raise CheckpointError(f"{path}: {reason}; save the adapter as safetensors")
    try:
        found = load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or truncated ({one_line(error)}); copy it again") from None
    odd = [name for name, each in found.items() if not each.is_floating_point()]
    if odd:
        raise CheckpointError(f"{path}: {odd[0]} is {found[odd[0]].dtype}; only floating-point pairs are read")
    sites, tensors = pairs_from_disk(found, told, adapter_layout(family, config), where=str(path))
    own = read_optional_json(folder / FACTS)
    updates, digest = own.get("config", {}), own.get("base_sha256", "")
    if not isinstance(updates, dict) or not isinstance(digest, str):
        raise CheckpointError(f"{folder / FACTS}: config or base_sha256 is not what difflm writes; copy it again")
    facts = AdapterFacts(
        sites=sites,
        token_ids=told.token_ids,
        gate=told.gate,
        draft_rank=told.draft_rank,
        base=told.base,
        revision=told.revision,
        base_sha256=digest,
        updates=updates,
    )
    return Adapter(facts, tensors)


def write_adapter(folder: Path, adapter: Adapter, family: Family, config: ModelConfig) -> None:
    """Write an adapter into an existing folder; the tensors keep their dtype."""
    layout, facts = adapter_layout(family, config), adapter.facts
    assert facts.base is not None, "an adapter is written with the name of its base"
    tensors = pairs_to_disk(facts.sites, adapter.tensors, layout)
    # Separate copies: those of a stack are views of it, and one name stands for each in the file.
    save_tensors(folder / ADAPTER_WEIGHTS, {name: each.detach().cpu().clone() for name, each in tensors.items()})
    raw = adapter_config(
        base=facts.base,
        revision=facts.revision,
        pairs=_modules(facts.sites, layout),
        every=layout.modules,
        stabilised=any(site.stabilised for site in facts.sites),
        token_rows=(layout.embedding.rpartition(".")[2], facts.token_ids) if facts.token_ids else None,
        gate=facts.gate,
        draft_rank=facts.draft_rank,
    )
    write_json(folder / ADAPTER_CONFIG, raw)
    write_json(folder / FACTS, {"base_sha256": facts.base_sha256, "config": dict(facts.updates)})


def _modules(sites: Sequence[AdapterSite], layout: AdapterLayout) -> dict[str, tuple[int, float]]:
    at = {place.weights: place for place in layout.places}
    return {module: (site.rank, site.alpha) for site in sites for module in at[site.weights].modules}


def put_adapter(model: Transformer, adapter: Adapter, *, dtype: torch.dtype | None = None) -> None:
    """Put an adapter on a model that has none.

    Args:
        model: of the adapter's base.
        adapter: from `read_adapter`.
        dtype: of the adapter on the model; None: the model's.
    """
    facts = adapter.facts
    given = {"token_ids": facts.token_ids, "gate": facts.gate, "draft_rank": facts.draft_rank}
    attach_adapter(model, facts.sites, dtype=dtype, **given)
    copy_adapter(model, adapter)


@torch.no_grad()
def copy_adapter(model: Transformer, adapter: Adapter) -> None:
    """Copy an adapter's numbers into a model that carries one with the same sites."""
    parameters = adapter_parameters(model)
    assert parameters.keys() == adapter.tensors.keys(), "an adapter with the same sites"
    for name, parameter in parameters.items():
        parameter.copy_(adapter.tensors[name])


def adapter_of(model: Transformer, facts: AdapterFacts) -> Adapter:
    """Return the adapter that a model carries; the tensors are the model's own."""
    return Adapter(facts, {name: each.detach() for name, each in adapter_parameters(model).items()})


def digest_of(files: Iterable[Path]) -> str:
    """Return a hash of the names and contents of files of one folder, in any order."""
    digest = hashlib.sha256()
    paths = sorted(files)
    for name, fact in hash_files(paths, root=paths[0].parent).items():
        digest.update(f"{name}:{fact.sha256}\n".encode())
    return digest.hexdigest()


def config_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of config.json in which `after` differs; null for those that it leaves out."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return {name: after.get(name) for name in names}
