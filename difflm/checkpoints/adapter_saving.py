"""Writing the adapter of a model as a folder that PEFT and `load_model` read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from difflm.checkpoints.adapter import AdapterFacts, adapter_of, write_adapter
from difflm.checkpoints.families import FAMILIES
from difflm.checkpoints.fields import merged
from difflm.checkpoints.folders import staged_folder
from difflm.checkpoints.loading import LoadedModel
from difflm.errors import CheckpointError

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
> row; merging it is refused.
"""
_WARNING = """
> **Warning: do not decode this model left to right.** Like its base it predicts masked tokens of a block, from both
> sides; PEFT loads the adapter, but transformers' `generate` decodes next token by next token.
"""


def save_adapter(loaded: LoadedModel, target: str | Path) -> None:
    """Write the adapter that a model carries; written aside and renamed.

    Args:
        loaded: a model with an adapter.
        target: an absent or empty folder.

    Raises:
        CheckpointError: the model carries no adapter, or `target` is not free or cannot be written.
    """
    if loaded.adapter is None:
        raise CheckpointError(f"{loaded.path}: the model carries no adapter; write it with save_model")
    with staged_folder(Path(target)) as stage:
        write_loaded_adapter(loaded, stage)


def write_loaded_adapter(loaded: LoadedModel, folder: Path, *, config_updates: Mapping[str, Any] | None = None) -> None:
    """Write the adapter that a model carries into an existing, empty folder.

    Args:
        loaded: a model with an adapter.
        folder: where to.
        config_updates: fields of config.json that the merged model gets.
    """
    facts = loaded.adapter
    assert facts is not None, "a model with an adapter"
    facts = replace(
        facts, base=facts.base or str(loaded.path.resolve()), updates=merged(facts.updates, config_updates or {})
    )
    adapter = adapter_of(loaded.model, facts)
    write_adapter(folder, adapter, FAMILIES[loaded.config.family], loaded.config.model)
    (folder / "README.md").write_text(_card(loaded, facts), encoding="utf-8")


def _card(loaded: LoadedModel, facts: AdapterFacts) -> str:
    licence = (loaded.config.raw.get("difflm") or {}).get("license")
    return _CARD.format(
        base=facts.base,
        license=f"license: {licence}\n" if licence else "",
        merging="" if facts.gate == "noisy" else _MERGING,
        warning=_GATED if facts.gate == "noisy" else _WARNING if loaded.config.mask_token_id is not None else "",
    )
