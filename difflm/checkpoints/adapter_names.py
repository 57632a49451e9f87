"""Names and shapes of low-rank pairs: PEFT's, beside the modules of a checkpoint's files, and those of our models.

A pair stands beside a matrix on disk. Query, key and value of Ling 2.0 and LLaDA2 are one matrix there: their pair is
one, with one A, and the model's three maps share it; an expert's gate, up and down have a pair each, stacked in the
model like the experts. So both ways are exact, and what PEFT computes on those files is what the model computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difflm.checkpoints.adapter_config import DRAFT_HEAD, PeftConfig, fits
from difflm.checkpoints.families import Family
from difflm.checkpoints.hf import listed
from difflm.checkpoints.rules import KeyRule, Shape, key_map
from difflm.errors import CheckpointError
from difflm.models.adapters import AdapterSite, adaptable_weights, pair_name
from difflm.models.config import ModelConfig
from difflm.models.transformer import Transformer

TOKEN_ROWS = "token_rows.weight"
HEAD_PARTS = ("draft_head.down", "draft_head.up")
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_ROWS = ".token_adapter.trainable_tokens_delta"
_HEAD = {name: f"{_PREFIX}difflm_{name}.weight" for name in HEAD_PARTS}


@dataclass(frozen=True, slots=True)
class Place:
    """Where one pair can stand.

    Attributes:
        weights: names of the model's weights (see `AdapterSite`).
        modules: modules in the files: one, or one for each expert (and part).
        shapes: of the modules' matrices, (out, in).
        rule: how the matrices become the weights.
    """

    weights: tuple[str, ...]
    modules: tuple[str, ...]
    shapes: tuple[Shape, ...]
    rule: KeyRule


@dataclass(frozen=True, slots=True)
class AdapterLayout:
    """Where pairs can stand in a model of a family.

    Attributes:
        places: in the model's order.
        stacked: weights whose matrices lie stacked in the family's files, where PEFT's format has no place for pairs.
        embedding: module of the embedding in the files.
        config: architecture.
    """

    places: tuple[Place, ...]
    stacked: tuple[str, ...]
    embedding: str
    config: ModelConfig

    @property
    def modules(self) -> list[str]:
        """Return every module of the files that can carry a pair."""
        return [module for place in self.places for module in place.modules]


def adapter_layout(family: Family, config: ModelConfig) -> AdapterLayout:
    """Return where pairs can stand; the names are those of safetensors files, also for a model from a GGUF file."""
    with torch.device("meta"):
        model = Transformer(config)
    shapes: dict[str, Shape] = {name: tuple(each.shape) for name, each in model.stored_tensors().items()}
    able = set(adaptable_weights(model))
    places, stacked, embedding = [], [], ""
    for rule in key_map(family.hf_rules, shapes, config):
        weights = tuple(name.removesuffix(".weight") for name in rule.model)
        modules = tuple(name.removesuffix(".weight") for name in rule.disk)
        if rule.model == ("embedding.weight",):
            embedding = modules[0]
        if not able.issuperset(weights):
            continue
        matrices = tuple(rule.change.disk_shapes([shapes[name] for name in rule.model], config))
        if any(len(shape) != 2 for shape in matrices):
            stacked += weights
            continue
        places.append(Place(weights, modules, matrices, rule))
    order = {name: number for number, name in enumerate(adaptable_weights(model))}
    places.sort(key=lambda place: order[place.weights[0]])
    return AdapterLayout(tuple(places), tuple(sorted(stacked, key=order.__getitem__)), embedding, config)


def pairs_to_disk(
    sites: Sequence[AdapterSite], tensors: Mapping[str, Tensor], layout: AdapterLayout
) -> dict[str, Tensor]:
    """Return an adapter's tensors by their names in adapter_model.safetensors.

    Args:
        sites: of the adapter.
        tensors: by the names of a model that carries it.
        layout: of the model.
    """
    at = {place.weights: place for place in layout.places}
    found: dict[str, Tensor] = {}
    for site in sites:
        place = at[site.weights]
        a = tensors[f"{pair_name(site.weights[0])}.a"]
        b = [tensors[f"{pair_name(weight)}.b"] for weight in site.weights]
        # B has the rows of the matrices, so it takes their way; so does A: one for all stays one.
        left, right = (place.rule.change.to_disk(each, layout.config) for each in ([a], b))
        for module, one, two in zip(place.modules, left, right, strict=True):
            found[f"{_PREFIX}{module}{_A}"], found[f"{_PREFIX}{module}{_B}"] = one, two
    if TOKEN_ROWS in tensors:
        found[f"{_PREFIX}{layout.embedding}{_ROWS}"] = tensors[TOKEN_ROWS]
    return found | {name: tensors[part] for part, name in _HEAD.items() if part in tensors}


def pairs_from_disk(
    found: Mapping[str, Tensor], config: PeftConfig, layout: AdapterLayout, *, where: str
) -> tuple[tuple[AdapterSite, ...], dict[str, Tensor]]:
    """Return (sites, tensors by the names of a model that carries them) of an adapter's files; inverse of the above.

    Args:
        found: tensors of adapter_model.safetensors.
        config: adapter_config.json.
        layout: of the base.
        where: the weight file, for errors.

    Raises:
        CheckpointError: unknown names, missing partners, or shapes that are not the base's.
    """
    rest = dict(found)
    sites: list[AdapterSite] = []
    tensors: dict[str, Tensor] = {}
    for place in layout.places:
        names = [(f"{_PREFIX}{module}{_A}", f"{_PREFIX}{module}{_B}") for module in place.modules]
        have = [name for pair in names for name in pair if name in rest]
        if not have:
            continue
        if len(have) != 2 * len(names):
            missing = [name for pair in names for name in pair if name not in rest]
            raise CheckpointError(f"{where}: {have[0]} is there, but not {listed(missing, 3)}; copy the adapter again")
        left, right = ([rest.pop(pair[side]) for pair in names] for side in (0, 1))
        rank = _rank(place, left, right, config, where=where)
        alphas = {config.alpha_of(module) for module in place.modules}
        if len(alphas) > 1:
            raise CheckpointError(
                f"{config.where}: alpha_pattern gives the experts of {place.weights[0]} {sorted(alphas)}; "
                "give all the same"
            )
        site = AdapterSite(weights=place.weights, rank=rank, alpha=alphas.pop(), stabilised=config.stabilised)
        sites.append(site)
        change = place.rule.change
        first, *sharing = place.weights
        tensors[f"{pair_name(first)}.a"] = left[0] if sharing else change.to_model(left, layout.config)[0]
        for weight, each in zip(place.weights, change.to_model(right, layout.config), strict=True):
            tensors[f"{pair_name(weight)}.b"] = each
    rows = rest.pop(f"{_PREFIX}{layout.embedding}{_ROWS}", None)
    tensors |= _draft_head({part: rest.pop(name, None) for part, name in _HEAD.items()}, config, layout, where=where)
    if rest:
        raise CheckpointError(
            f"{where}: {listed(sorted(rest), 3)} has no place in the base; only pairs beside linear maps inside the "
            "layers, and rows of the embedding, are read"
        )
    _check_targets(sites, config, layout, where=where)
    if rows is not None or config.token_ids:
        tensors[TOKEN_ROWS] = _rows(rows, config, layout, where=where)
    if not tensors:
        raise CheckpointError(f"{where}: holds no adapter")
    return tuple(sites), tensors


def _rank(place: Place, left: Sequence[Tensor], right: Sequence[Tensor], config: PeftConfig, *, where: str) -> int:
    """Return the rank of a place's pairs, after the checks of their shapes."""
    rank = len(left[0]) if left[0].dim() == 2 else 0
    for module, (out, width), a, b in zip(place.modules, place.shapes, left, right, strict=True):
        if tuple(a.shape) != (rank, width) or tuple(b.shape) != (out, rank) or not rank:
            raise CheckpointError(
                f"{where}: A {list(a.shape)} and B {list(b.shape)} of {module} do not fit the base's {[out, width]}; "
                "it is an adapter of another model, or damaged"
            )
    if rank != config.rank and not config.varies:
        raise CheckpointError(f"{where}: {place.modules[0]} has rank {rank}, but r is {config.rank} in {config.where}")
    return rank


def _check_targets(sites: Sequence[AdapterSite], config: PeftConfig, layout: AdapterLayout, *, where: str) -> None:
    """Refuse files that lack pairs of modules that the configuration names."""
    if config.targets is None:
        return
    have = {site.weights for site in sites}
    lost = [
        module
        for place in layout.places
        if place.weights not in have
        for module in place.modules
        if any(fits(module, target) for target in config.targets)
    ]
    if lost:
        raise CheckpointError(
            f"{where}: no pair for {listed(lost, 3)}, which target_modules of {config.where} names; copy the adapter "
            "again"
        )


def _draft_head(
    found: Mapping[str, Tensor | None], config: PeftConfig, layout: AdapterLayout, *, where: str
) -> dict[str, Tensor]:
    """Return the tensors of a draft head, after the checks of their shapes; nothing where there is none."""
    have = {name: each for name, each in found.items() if each is not None}
    rank, width = config.draft_rank, layout.config.hidden_size
    wanted = dict(zip(HEAD_PARTS, ((rank, 2 * width), (width, rank)), strict=True)) if rank else {}
    if {name: tuple(each.shape) for name, each in have.items()} != wanted:
        shapes = {name: list(each.shape) for name, each in have.items()} or "missing"
        raise CheckpointError(
            f"{where}: the draft head is {shapes}, expected { ({name: list(each) for name, each in wanted.items()}) } "
            f"for {DRAFT_HEAD} {rank} of {config.where}; copy the adapter again"
        )
    return have


def _rows(rows: Tensor | None, config: PeftConfig, layout: AdapterLayout, *, where: str) -> Tensor:
    size, wanted = layout.config.vocab_size, (len(config.token_ids), layout.config.hidden_size)
    if any(token_id >= size for token_id in config.token_ids):
        raise CheckpointError(
            f"{config.where}: trainable_token_indices {list(config.token_ids)} exceed the base's vocab_size ({size})"
        )
    if rows is None or tuple(rows.shape) != wanted:
        shape = "missing" if rows is None else f"{list(rows.shape)}"
        raise CheckpointError(
            f"{where}: rows of the embedding are {shape}, expected {list(wanted)} for trainable_token_indices "
            f"{list(config.token_ids)} of {config.where}"
        )
    return rows
