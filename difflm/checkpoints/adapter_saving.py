"""Writing the adapter of a model as a folder that PEFT and `load_model` read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from difflm.checkpoints.adapter import FACTS, Adapter, AdapterFacts, adapter_of, config_changes, write_adapter
from difflm.checkpoints.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from difflm.checkpoints.families import FAMILIES, model_config
from difflm.checkpoints.fields import merged, read_optional_json, write_json
from difflm.checkpoints.folders import require_free, staged_folder
from difflm.checkpoints.loading import LoadedModel, resolve_dtype
from difflm.checkpoints.manifest import MANIFEST, read_manifest, verify_file
from difflm.checkpoints.saving import without_remote_code
from difflm.checkpoints.source import open_base, open_checkpoint, with_adapters
from difflm.errors import CheckpointError

_CARD_FILE, _GENERATION = "README.md", "generation_config.json"
_TRAINING = "\n## Training\n"  # what a run adds to the card of its checkpoints
_CARD = """---
base_model: {base}
library_name: peft
{license}tags:
- difflm
- lora
---

# Adapter for {base}

Low-rank pairs in PEFT's format, trained by difflm. With its base it is what `difflm.load_model` returns for this
folder{merging}.
{warning}"""
_MERGING = "; `difflm merge FOLDER --output TARGET` writes both as one checkpoint"
_GATED = """
> **Warning: this adapter is for masked rows alone** (`difflm_adapter_rows` in adapter_config.json): it drafts what its
> base then verifies, so that the text is the base's. PEFT does not know the field and would apply the adapter to every
> row. Base and adapter stay two: one set of weights would know no rows.
"""
_WARNING = """
> **Warning: do not decode this model left to right.** Like its base it predicts masked tokens of a block, from both
> sides; PEFT loads the adapter, but transformers' `generate` decodes next token by next token.
"""


def save_adapter(loaded: LoadedModel, target: str | Path, *, dtype: str | torch.dtype | None = None) -> None:
    """Write the adapter that a model carries as a folder that PEFT and `load_model` read; written aside and renamed.

    The base is named, by path or hub id and by its hash, and not copied. Fields of generation_config.json in which the
    model differs from its base are the adapter's own and are written with it.

    Args:
        loaded: a model with an adapter.
        target: an absent or empty folder.
        dtype: of the adapter on disk: "float32", "bfloat16", "float16" or "float64"; None keeps the one it has.

    Raises:
        CheckpointError: the model carries no adapter, or `target` is not free or cannot be written.
        ConfigError: a dtype that is none of these.
    """
    if loaded.adapter is None:
        raise CheckpointError(f"{loaded.path}: the model carries no adapter; write it with save_model")
    kind = None if dtype is None else resolve_dtype(dtype)
    require_free(Path(target))
    own: Mapping[str, Any] = {}
    if loaded.config.generation:  # else the base need not lie there any more
        own = config_changes(open_checkpoint(loaded.path).generation, loaded.config.generation)
    with staged_folder(Path(target)) as stage:
        write_loaded_adapter(loaded, stage, dtype=kind)
        _write_defaults(stage, own)


def finish_adapter(
    folder: str | Path,
    target: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str | torch.dtype | None = None,
) -> None:
    """Write the adapter of a run's checkpoint as a folder of its own, without moments, counters and seal.

    Gate, base and its hash, generation defaults and what the card says of the run are kept. Of the base, configuration
    and names are read and its files are hashed: it must be the adapter's.

    Args:
        folder: the checkpoint, or any folder of an adapter.
        target: an absent or empty folder.
        base: of the adapter, instead of the one that it names; its path is written.
        dtype: of the adapter on disk, as in `save_adapter`; None keeps the stored one.

    Raises:
        CheckpointError: the checkpoint is damaged, its base is not here or another one, or `target` is not free or
            cannot be written.
        ConfigError: a dtype that cannot be written.
    """
    folder, target = Path(folder), Path(target)
    require_free(target)
    kind = None if dtype is None else resolve_dtype(dtype)
    _require_intact(folder)
    opened = with_adapters(open_base(folder) if base is None else open_checkpoint(base), [folder])
    config = model_config(opened.raw, opened.where)
    opened.parameters(config, merge=False)  # names, shapes and hash of the base
    assert opened.adapter is not None
    [adapter] = opened.adapter.members
    facts = adapter.facts
    if base is not None:
        facts = replace(facts, base=str(Path(base).resolve()), revision=None)
    card = _card(facts, opened.raw, masked=opened.raw.get("mask_token_id") is not None)
    with staged_folder(target) as stage:
        write_adapter(stage, _converted(Adapter(facts, adapter.tensors), kind), opened.family, config)
        (stage / _CARD_FILE).write_text(card + _training_of(folder), encoding="utf-8")
        _write_defaults(stage, read_optional_json(folder / _GENERATION))


def write_loaded_adapter(
    loaded: LoadedModel,
    folder: Path,
    *,
    config_updates: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the adapter that a model carries into an existing, empty folder.

    Args:
        loaded: a model with an adapter.
        folder: where to.
        config_updates: fields of config.json that the merged model gets.
        dtype: of the adapter on disk; None keeps the one it has.
    """
    facts = loaded.adapter
    assert facts is not None, "a model with an adapter"
    facts = replace(
        facts, base=facts.base or str(loaded.path.resolve()), updates=merged(facts.updates, config_updates or {})
    )
    adapter = _converted(adapter_of(loaded.model, facts), dtype)
    write_adapter(folder, adapter, FAMILIES[loaded.config.family], loaded.config.model)
    card = _card(facts, loaded.config.raw, masked=loaded.config.mask_token_id is not None)
    (folder / _CARD_FILE).write_text(card, encoding="utf-8")


def _converted(adapter: Adapter, dtype: torch.dtype | None) -> Adapter:
    if dtype is None:
        return adapter
    return Adapter(adapter.facts, {name: each.to(dtype) for name, each in adapter.tensors.items()})


def _write_defaults(folder: Path, generation: Mapping[str, Any]) -> None:
    if generation:
        write_json(folder / _GENERATION, without_remote_code(generation))


def _require_intact(folder: Path) -> None:
    """Compare what is read of a sealed checkpoint with what its manifest says."""
    if not (folder / MANIFEST).is_file():
        return
    sealed = read_manifest(folder)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, FACTS, _CARD_FILE, _GENERATION):
        if name in sealed:
            try:
                verify_file(folder / name, sealed[name])
            except CheckpointError as error:
                raise CheckpointError(f"{error}; name another checkpoint, or restore this one from a copy") from None


def _training_of(folder: Path) -> str:
    """Return the section on training of a checkpoint's card, "" where there is none."""
    card = folder / _CARD_FILE
    _, mark, section = (card.read_text(encoding="utf-8") if card.is_file() else "").partition(_TRAINING)
    return mark + section


def _card(facts: AdapterFacts, raw: Mapping[str, Any], *, masked: bool) -> str:
    licence = (raw.get("difflm") or {}).get("license")
    return _CARD.format(
        base=facts.base,
        license=f"license: {licence}\n" if licence else "",
        merging="" if facts.gate == "noisy" else _MERGING,
        warning=_GATED if facts.gate == "noisy" else _WARNING if masked else "",
    )
