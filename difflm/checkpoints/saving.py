"""Writing a checkpoint folder that loads as it is: weights, configuration, tokenizer, chat template, model card."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difflm.checkpoints.adapter import refuse_gated
from difflm.checkpoints.card import licence_files, model_card
from difflm.checkpoints.families import FAMILIES, Family, updated_config
from difflm.checkpoints.fields import merged, read_json, write_json
from difflm.checkpoints.folders import staged_folder
from difflm.checkpoints.hf import MAX_SHARD_BYTES
from difflm.checkpoints.loading import LoadedModel, resolve_dtype
from difflm.checkpoints.parameters import outline, put_parameters
from difflm.checkpoints.rules import KeyRule, key_map, stored_dtype
from difflm.checkpoints.shards import Entry, Ledger, plan_shards, write_safetensors
from difflm.checkpoints.source import parameter_shapes
from difflm.checkpoints.tokens import carried_text_files
from difflm.errors import CheckpointError
from difflm.models.adapters import merged_tensors
from difflm.models.config import ModelConfig
from difflm.models.quantised import is_quantised

_REMOTE_CODE = ("auto_map", "custom_pipelines", "custom_generate")


def save_model(
    loaded: LoadedModel,
    target: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    config_updates: Mapping[str, Any] | None = None,
    card: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model as an HF folder, an adapter merged in; written aside and renamed.

    Args:
        loaded: model, and the checkpoint whose configuration and tokenizer are carried over.
        target: an absent or empty folder.
        dtype: of the weights on disk; None keeps the parameters' own, bit for bit.
        config_updates: fields of config.json to add or replace; objects (such as `difflm`) are merged, not replaced.
        card: text of README.md; None writes the card of a converted checkpoint, or none for an AR one.
        max_shard_bytes: largest weight file, bytes.

    Raises:
        CheckpointError: `target` is not free or cannot be written, the adapter is for noisy rows alone, or the weights
            are held in int8.
    """
    if is_quantised(loaded.model):
        raise CheckpointError(
            f"{target}: the model was loaded with weights 'int8', which no file of a checkpoint holds; load it with "
            "weights 'float' to save it"
        )
    if loaded.adapter is not None:
        refuse_gated(loaded.adapter, str(target))
    kind = None if dtype is None else resolve_dtype(dtype)
    with staged_folder(Path(target)) as stage:
        write_loaded(
            loaded, stage, dtype=kind, config_updates=config_updates, card=card, max_shard_bytes=max_shard_bytes
        )


def write_loaded(
    loaded: LoadedModel,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    config_updates: Mapping[str, Any] | None = None,
    card: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model as an HF folder into an existing, empty folder; see `save_model`."""
    family, architecture = FAMILIES[loaded.config.family], loaded.config.model
    raw = updated_config(loaded.config.raw, architecture, str(loaded.path))
    raw = merged(raw, config_updates or {})
    write_model(
        folder,
        merged_tensors(loaded.model),
        family,
        architecture,
        raw=raw,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
    )
    if loaded.config.generation:
        write_json(folder / "generation_config.json", without_remote_code(loaded.config.generation))
    write_tokenizer(folder, loaded.path, loaded.tokenizer)
    if card is None and loaded.config.mask_token_id is not None:
        card = model_card(raw)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")


def write_model(
    folder: Path,
    parameters: Mapping[str, Tensor],
    family: Family,
    config: ModelConfig,
    *,
    raw: Mapping[str, Any],
    dtype: torch.dtype | None,
    max_shard_bytes: int,
    indexed: bool = False,
    ledger: Ledger | None = None,
) -> None:
    """Write weights and config.json into an existing folder, tensor by tensor, experts in slabs.

    Args:
        folder: where to.
        parameters: by the names of `Transformer`; each is asked for when it is written, and never whole if it is a
            stack of experts.
        family: decides the names on disk.
        config: architecture.
        raw: config.json; its dtype field is set to what is written.
        dtype: of the weights on disk, None keeps each parameter's own.
        max_shard_bytes: largest weight file, bytes.
        indexed: write an index even for a single file.
        ledger: knows the weight files that are finished already, and is told of the others (`Stage`).
    """
    absent = set(parameter_shapes(config)) - set(parameters)
    assert not absent, f"{sorted(absent)} would be missing from the files"
    rules = key_map(family.hf_rules, dict.fromkeys(parameters, ()), config)
    entries = _entries(rules, parameters, config, dtype)
    # Biases of experts may be wider than the weights, which the field describes.
    written = {entry.dtype for entry in entries if not entry.name.endswith(".expert_bias")}
    spelling = "torch_dtype" if "torch_dtype" in raw else "dtype"
    kept = {name: value for name, value in raw.items() if name not in ("torch_dtype", "dtype")}
    if len(written) == 1:
        kept[spelling] = str(written.pop()).removeprefix("torch.")
    write_json(folder / "config.json", without_remote_code(kept))
    write_safetensors(
        folder,
        plan_shards(entries, max_shard_bytes=max_shard_bytes, indexed=indexed),
        lambda writer: put_parameters(writer, rules, parameters, config),
        ledger=ledger,
    )


def _entries(
    rules: Sequence[KeyRule], parameters: Mapping[str, Tensor], config: ModelConfig, dtype: torch.dtype | None
) -> list[Entry]:
    """Return what will be on disk; nothing is read."""
    entries = []
    for rule in rules:
        outlines = [outline(parameters, name) for name in rule.model]
        shapes = rule.change.disk_shapes([tuple(each.shape) for each in outlines], config)
        own = functools.reduce(torch.promote_types, (each.dtype for each in outlines))
        for name, shape in zip(rule.disk, shapes, strict=True):
            entries.append(Entry(name, shape, own if dtype is None else stored_dtype(name, dtype)))
    return entries


def write_tokenizer(folder: Path, source: Path, tokenizer: Any | None) -> None:
    """Carry tokenizer and licence files of a folder over; a GGUF file's tokenizer is written by transformers.

    Args:
        folder: where to.
        source: HF folder or GGUF file.
        tokenizer: the loaded tokenizer, None where there is none.
    """
    for file in licence_files(source):
        shutil.copyfile(file, folder / file.name)
    files = carried_text_files(source) if source.is_dir() else ()
    for file in files:
        copy = folder / file.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)
    if not files and tokenizer is not None:
        tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return
    config = without_remote_code(read_json(path))
    if not files:
        # The name that transformers 4 and 5 both know; is_local and the like describe this machine.
        config = {
            name: value for name, value in config.items() if name not in ("backend", "is_local", "local_files_only")
        }
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(path, config)


def without_remote_code(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without references to code: no code of a checkpoint is run or carried over."""
    return {name: value for name, value in raw.items() if name not in _REMOTE_CODE}
