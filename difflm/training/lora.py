"""The adapter of a run: which weights get a low-rank pair, and its start."""

from __future__ import annotations

from fnmatch import fnmatchcase

import torch

from difflm.checkpoints.adapter import AdapterFacts, config_changes
from difflm.checkpoints.adapter_names import AdapterLayout, adapter_layout
from difflm.checkpoints.families import FAMILIES, updated_config
from difflm.checkpoints.loading import LoadedModel
from difflm.checkpoints.moe_fields import MTP_FIELDS
from difflm.errors import ConfigError
from difflm.models.adapters import AdapterSite, attach_adapter
from difflm.training.config import TrainConfig
from difflm.training.config_lora import LoRAConfig
from difflm.training.parameters import require_match

WORDS = ("attention", "mlp", "shared", "experts")
"""Targets that are no patterns."""


def give_adapter(config: TrainConfig, loaded: LoadedModel) -> None:
    """Put the adapter of a run on its base, float32 whatever the base's dtype; nothing without `lora`.

    Args:
        config: of the run.
        loaded: the base; it gets the adapter.

    Raises:
        ConfigError: a target that matches nothing or a part of a fused matrix, or a model that is an adapter already.
    """
    if loaded.adapter is not None and loaded.adapter.gate == "noisy":
        raise ConfigError(
            f"train.model: {config.model} is an adapter that only drafts, and is never merged; train a new one on its "
            f"base, {loaded.adapter.base}"
        )
    if loaded.adapter is not None:
        raise ConfigError(
            f"train.model: {config.model} is an adapter; merge it into its base first (difflm merge {config.model} "
            "--output FOLDER), and train on from there"
        )
    if config.lora is None:
        return
    layout = adapter_layout(FAMILIES[loaded.config.family], loaded.config.model)
    sites = sites_of(config.lora, layout, family=loaded.config.family)
    mask_id = loaded.config.mask_token_id
    token_ids = (mask_id,) if config.lora.mask_row and mask_id is not None else ()
    generator = torch.Generator().manual_seed(config.seed)
    attach_adapter(
        loaded.model,
        sites,
        token_ids=token_ids,
        generator=generator,
        dtype=torch.float32,
        gate=config.lora.adapter_rows,
        draft_rank=config.lora.draft_head,
    )
    raw = loaded.config.raw
    changes = config_changes(raw, updated_config(raw, loaded.config.model, str(loaded.path)))
    local = config.model.exists()
    loaded.adapter = AdapterFacts(
        sites=sites,
        token_ids=token_ids,
        gate=config.lora.adapter_rows,
        draft_rank=config.lora.draft_head,
        base=str(config.model.resolve()) if local else config.model.as_posix(),
        revision=None if local else config.revision,
        # The base keeps its multi-token-prediction layers; whatever is merged drops them itself.
        updates={name: value for name, value in changes.items() if name not in MTP_FIELDS},
    )


def sites_of(config: LoRAConfig, layout: AdapterLayout, *, family: str) -> tuple[AdapterSite, ...]:
    """Return the low-rank pairs that a configuration asks for, in the model's order.

    Args:
        config: rank, alpha and targets.
        layout: where pairs can stand.
        family: of the model, for errors.

    Raises:
        ConfigError: see `give_adapter`.
    """
    names = [weight for place in layout.places for weight in place.weights]
    for index, target in enumerate(config.targets):
        where = f"train.lora.targets[{index}]"
        if any(_matches(target, name) for name in layout.stacked):
            raise ConfigError(
                f"{where}: {target!r} matches {layout.stacked[0]}, but the files of {family} hold all experts in one "
                "tensor, beside which PEFT's format has no place; export the model to split experts first, or leave "
                "the experts out"
            )
        if target in WORDS:
            if not any(_matches(target, name) for name in names):
                there = [word for word in WORDS if any(_matches(word, name) for name in names)]
                raise ConfigError(f"{where}: {target!r} is no part of this model; it has {', '.join(there)}")
        else:
            require_match(target, names, where=where)
    sites = []
    for place in layout.places:
        chosen = [weight for weight in place.weights if any(_matches(target, weight) for target in config.targets)]
        if chosen and len(chosen) < len(place.weights):
            left = sorted(set(place.weights) - set(chosen))
            raise ConfigError(
                f"train.lora.targets: match {chosen[0]} but not {left[0]}, which are one matrix in the files of "
                f"{family} ({place.modules[0]}) and share a pair; take all or none"
            )
        if chosen:
            sites.append(
                AdapterSite(
                    weights=place.weights,
                    rank=config.rank,
                    alpha=config.alpha,
                    stabilised=config.rank_stabilised,
                )
            )
    return tuple(sites)


def _matches(target: str, weight: str) -> bool:
    """Return whether a word or pattern names a weight."""
    if target not in WORDS:
        return fnmatchcase(weight, target)
    _, _, *inner = weight.split(".")  # "layers", its number
    return inner[0] == target if target in ("attention", "mlp") and len(inner) == 2 else target in inner[1:-1]
