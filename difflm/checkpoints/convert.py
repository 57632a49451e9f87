"""An AR checkpoint becomes a block-diffusion checkpoint: one token, some fields, the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import difflm
from difflm.checkpoints.card import model_card
from difflm.checkpoints.config import CheckpointConfig, checkpoint_config, named_token_ids
from difflm.checkpoints.engines import ENGINES
from difflm.checkpoints.families import FAMILIES, Family, converted_config
from difflm.checkpoints.fields import write_json
from difflm.checkpoints.folders import require_free
from difflm.checkpoints.hf import MAX_SHARD_BYTES
from difflm.checkpoints.loading import resolve_dtype
from difflm.checkpoints.mask_token import (
    MaskChoice,
    MaskedParameters,
    MaskInit,
    choose_mask_token,
    require_spare,
    reserved_ids,
    write_mask_token,
)
from difflm.checkpoints.resume import Observer, Stage, hash_checkpoints, resumable_folder
from difflm.checkpoints.saving import without_remote_code, write_model, write_tokenizer
from difflm.checkpoints.source import Checkpoint, open_checkpoint, tokenizer_facts
from difflm.checkpoints.tokens import load_tokenizer, turn_token_ids, vocabulary
from difflm.errors import CheckpointError, ConfigError
from difflm.types import CleanAttention, NoisyAttention, Parametrisation


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What `convert` did.

    Attributes:
        target: the folder written.
        family: model family that was written.
        mask_token: string of the mask token, None without a tokenizer.
        mask_token_id: its id.
        vocab_size: rows of the embedding.
        adds_row: the embedding grew by one row.
        parent_sha256: hash of each weight file of the parent.
        left_out: tensors of the parent that a diffusion model has no use for (multi-token-prediction layers).
    """

    target: Path
    family: str
    mask_token: str | None
    mask_token_id: int
    vocab_size: int
    adds_row: bool
    parent_sha256: Mapping[str, str]
    left_out: tuple[str, ...] = ()


def convert(
    source: str | Path,
    target: str | Path,
    *,
    mask_token: str | None = None,
    mask_token_id: int | None = None,
    mask_init: MaskInit = "mean",
    block_size: int = 32,
    logit_shift: bool = False,
    clean_attention: CleanAttention = "block",
    noisy_attention: NoisyAttention = "bidirectional",
    dtype: str | torch.dtype | None = None,
    licence: str | None = None,
    recipe: str | Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    revision: str | None = None,
    fresh: bool = False,
    observer: Observer | None = None,
) -> Conversion:
    """Write a block-diffusion checkpoint made from an AR one; streams, a tensor (of experts: some) in memory at a time.

    The parent's weights are kept bit for bit outside the mask row (unless `dtype` changes them). A Ling 2.0 parent
    becomes LLaDA2, without layers for multi-token prediction. The defaults are the paper's parametrisation: no shift,
    block-causal clean stream, bidirectional blocks. The same call continues an interrupted one, to the same bytes.

    Args:
        source: HF folder, GGUF file, a folder with one GGUF file, or a hub id (see `load_model`).
        target: an absent or empty folder.
        mask_token: string of a spare token to reuse as mask; None appends `<|mask|>` after the tokenizer's last id.
        mask_token_id: id of the mask in a checkpoint without tokenizer; None adds a row.
        mask_init: the mask's embedding row starts as the mean of the embedding ("mean") or stays ("keep").
        block_size: tokens of a diffusion block, recorded as the default of training and decoding.
        logit_shift: token i is predicted at row i-1 (True) or row i (False).
        clean_attention: clean stream block-causal ("block") or token-causal ("causal").
        noisy_attention: inside a noisy block "bidirectional" or "causal".
        dtype: of the weights on disk; None keeps what is stored (float32 from GGUF).
        licence: SPDX id to record; None takes it from the parent's model card or GGUF metadata.
        recipe: name or description of what made or will train the checkpoint, recorded as it is.
        max_shard_bytes: largest weight file, bytes.
        revision: commit of a hub id; recorded with it.
        fresh: throw away what an interrupted conversion to `target` left, instead of continuing it.
        observer: is told of progress; None: what it would note is a warning.

    Raises:
        CheckpointError: the parent cannot be used, `target` is not free or in use, or the mask token is not possible.
        ConfigError: an option's value is not one of those allowed.
    """
    parametrisation = _parametrisation(logit_shift, clean_attention, noisy_attention)
    _check_options(mask_init, block_size)
    target, stored = Path(target), None if dtype is None else resolve_dtype(dtype)
    require_free(target)
    checkpoint = open_checkpoint(source, revision=revision)
    tokenizer = checkpoint.tokenizer()
    config = _parent_config(checkpoint, tokenizer, block_size)
    choice = _choose(checkpoint, config, tokenizer, mask_token, mask_token_id, mask_init)
    record = {"recipe": recipe, "license": licence or checkpoint.licence, "mask_init": mask_init}
    fields = _diffusion_fields(choice, block_size, parametrisation)
    plan = _Plan(checkpoint, config, tokenizer, choice, mask_init, fields, record)
    with resumable_folder(target, fresh=fresh, observer=observer) as stage:
        return plan.write(stage, target, dtype=stored, max_shard_bytes=max_shard_bytes)


@dataclass(frozen=True, slots=True)
class _Plan:
    """A conversion that is decided but not yet on disk."""

    checkpoint: Checkpoint
    config: CheckpointConfig
    tokenizer: Any | None
    choice: MaskChoice
    mask_init: MaskInit
    fields: Mapping[str, Any]
    record: Mapping[str, Any]

    def write(self, stage: Stage, target: Path, *, dtype: torch.dtype | None, max_shard_bytes: int) -> Conversion:
        """Fill the stage of a target."""
        checkpoint, choice = self.checkpoint, self.choice
        inputs = hash_checkpoints({"": checkpoint}, stage.observer)
        options = {**self.fields, **self.record, "dtype": dtype and str(dtype), "max_shard_bytes": max_shard_bytes}
        stage.begin("convert", options, inputs)
        if told := _occupied(checkpoint.family, choice, self.tokenizer):
            stage.observer.note(f"{target}: {told}")
        stored = checkpoint.parameters(self.config.model)
        parameters = MaskedParameters(stored, choice, self.mask_init)
        architecture = replace(self.config.model, vocab_size=choice.vocab_size)
        hashes = {file.name: inputs[file.name] for file in checkpoint.weights.files}
        commit = {} if checkpoint.hub is None else {"revision": checkpoint.hub.revision}
        parent = {"name": checkpoint.name, **commit, "sha256": hashes}
        family, raw = converted_config(checkpoint.raw, architecture, checkpoint.where)
        if family is not checkpoint.family:
            raw |= _named_ids(raw, self.config)
        raw |= self.fields
        left_out = {"left_out": sorted(stored.left_out)} if stored.left_out else {}
        raw["difflm"] = {"version": difflm.__version__, "parent": parent, **self.record, **left_out}
        # Before the weights: a tokenizer that cannot take the mask token is found at once.
        _write_texts(stage.folder, checkpoint, self.tokenizer, choice, model_card(raw))
        write_model(
            stage.folder,
            parameters,
            family,
            architecture,
            raw=raw,
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
            ledger=stage,
        )
        return Conversion(
            target=target,
            family=family.name,
            mask_token=choice.token,
            mask_token_id=choice.token_id,
            vocab_size=choice.vocab_size,
            adds_row=choice.adds_row,
            parent_sha256=hashes,
            left_out=stored.left_out,
        )


def _occupied(parent: Family, choice: MaskChoice, tokenizer: Any | None) -> str | None:
    """Return what to say where the id that engines have built in as mask is another token of this tokenizer."""
    target = FAMILIES[parent.diffusion or parent.name].architecture
    ids = {engine.mask_ids[target] for engine in ENGINES.values() if target in engine.mask_ids} - {choice.token_id}
    names = {} if tokenizer is None else {token_id: token for token, token_id in vocabulary(tokenizer).items()}
    taken = [f"{token_id}, which is {names[token_id]!r} here" for token_id in sorted(ids) if token_id in names]
    if not taken:
        return None
    return (
        f"engines have a mask built in for {target}, {'; '.join(taken)}; the mask is {choice.token!r}, id "
        f"{choice.token_id}, and only difflm decodes with it"
    )


def _named_ids(raw: Mapping[str, Any], config: CheckpointConfig) -> dict[str, int]:
    """Return the ids that a configuration leaves to class defaults; padding is the end of a text where unnamed."""
    eos = next(iter(config.eos_token_ids), None)
    pad = eos if config.pad_token_id is None else config.pad_token_id
    found = {"eos_token_id": eos, "bos_token_id": config.bos_token_id, "pad_token_id": pad}
    return {name: value for name, value in found.items() if value is not None and raw.get(name) is None}


def _parametrisation(logit_shift: bool, clean_attention: str, noisy_attention: str) -> Parametrisation:
    if not isinstance(logit_shift, bool):
        raise ConfigError(f"logit_shift is {logit_shift!r}; expected True or False")
    if clean_attention not in ("block", "causal"):
        raise ConfigError(f"clean_attention is {clean_attention!r}; expected block or causal")
    if noisy_attention not in ("bidirectional", "causal"):
        raise ConfigError(f"noisy_attention is {noisy_attention!r}; expected bidirectional or causal")
    return Parametrisation(logit_shift=logit_shift, clean_attention=clean_attention, noisy_attention=noisy_attention)


def _check_options(mask_init: str, block_size: int) -> None:
    if mask_init not in ("mean", "keep"):
        raise ConfigError(f"mask_init is {mask_init!r}; expected mean or keep")
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        raise ConfigError(f"block_size is {block_size!r}; expected a number of tokens, at least 1")


def _parent_config(checkpoint: Checkpoint, tokenizer: Any | None, block_size: int) -> CheckpointConfig:
    facts = tokenizer_facts(tokenizer)
    config = checkpoint_config(checkpoint.raw, checkpoint.generation, facts, where=checkpoint.where)
    if config.mask_token_id is not None:
        raise CheckpointError(
            f"{checkpoint.where}: mask_token_id is {config.mask_token_id}; this is a diffusion model already, "
            "convert its AR parent or train it as it is"
        )
    if facts is not None and "eos_token" not in facts.special:
        raise CheckpointError(f"{checkpoint.path}: the tokenizer has no eos_token; set it in tokenizer_config.json")
    if block_size > config.model.max_positions:
        raise ConfigError(
            f"block_size is {block_size}; expected at most the context of {checkpoint.path}, "
            f"{config.model.max_positions} tokens"
        )
    return config


def _write_texts(stage: Path, checkpoint: Checkpoint, tokenizer: Any | None, choice: MaskChoice, card: str) -> None:
    """Write everything but weights and config.json."""
    if checkpoint.generation:
        write_json(stage / "generation_config.json", without_remote_code(checkpoint.generation))
    write_tokenizer(stage, checkpoint.path, tokenizer)
    if tokenizer is not None:
        write_mask_token(stage, choice)
        _verify_tokenizer(stage, tokenizer, choice)
    (stage / "README.md").write_text(card, encoding="utf-8")


def _choose(
    checkpoint: Checkpoint,
    config: CheckpointConfig,
    tokenizer: Any | None,
    mask_token: str | None,
    mask_token_id: int | None,
    mask_init: MaskInit,
) -> MaskChoice:
    facts, where = tokenizer_facts(tokenizer), str(checkpoint.path)
    special = facts.special if facts else {}
    padding = named_token_ids("pad", checkpoint.raw, checkpoint.generation, special, checkpoint.where)
    others = {"bos_token_id": () if config.bos_token_id is None else (config.bos_token_id,), "pad_token_id": padding}
    turns = turn_token_ids(tokenizer) if tokenizer is not None else frozenset()
    choice = choose_mask_token(
        facts,
        vocab_size=config.model.vocab_size,
        mask_token=mask_token,
        mask_token_id=mask_token_id,
        reserved=reserved_ids(special, config.eos_token_ids, others, turns),
        where=where,
    )
    if tokenizer is not None:
        require_spare(tokenizer, choice, where)
    if mask_init == "keep" and choice.adds_row:
        raise CheckpointError(
            f'{where}: mask_init is "keep" but the mask token (id {choice.token_id}) has no row yet; use "mean"'
        )
    return choice


def _diffusion_fields(choice: MaskChoice, block_size: int, parametrisation: Parametrisation) -> dict[str, Any]:
    return {
        "block_size": block_size,
        "mask_token_id": choice.token_id,
        "mask_token": choice.token,
        "logit_shift": parametrisation.logit_shift,
        "clean_attention": parametrisation.clean_attention,
        "noisy_attention": parametrisation.noisy_attention,
    }


def _verify_tokenizer(folder: Path, parent: Any, choice: MaskChoice) -> None:
    """Read the written tokenizer back: the parent's vocabulary, plus the mask token under the id chosen for it."""
    written = load_tokenizer(folder)
    assert written is not None
    expected = vocabulary(parent) | {str(choice.token): choice.token_id}
    if vocabulary(written) != expected or written.mask_token_id != choice.token_id:
        raise CheckpointError(
            f"{folder}: the tokenizer does not give {choice.token!r} the id {choice.token_id} (its ids have gaps); "
            "name a spare token instead"
        )
