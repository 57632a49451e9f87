"""A checkpoint in the layout that another program loads: split or stacked experts, SDAR's class, the family's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import difflm
from difflm.checkpoints.card import model_card, with_serving
from difflm.checkpoints.config import DIFFUSION_TYPES, CheckpointConfig, checkpoint_config
from difflm.checkpoints.engines import ENGINES, shortcomings
from difflm.checkpoints.families import FAMILIES, Family, rewritten_config, updated_config
from difflm.checkpoints.fields import read_json, write_json
from difflm.checkpoints.folders import require_free
from difflm.checkpoints.hf import MAX_SHARD_BYTES
from difflm.checkpoints.loading import resolve_dtype
from difflm.checkpoints.parameters import Parameters, outline, take
from difflm.checkpoints.resume import Observer, Stage, hash_checkpoints, resumable_folder
from difflm.checkpoints.saving import without_remote_code, write_model, write_tokenizer
from difflm.checkpoints.source import Checkpoint, open_checkpoint, tokenizer_facts
from difflm.errors import CheckpointError, ConfigError
from difflm.models.config import ModelConfig

_AR = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "bailing_moe")
_AR_CLASSES = {
    "llada2_moe": "bailing_moe", "llada2_moe_veomni": "bailing_moe", "sdar": "qwen3", "sdar_moe": "qwen3_moe",
}  # fmt: skip
"""Diffusion class -> class of the parent, with the same tensors, which reads a token-causal model left to right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A layout of files.

    Attributes:
        families: family of the source -> family that is written.
        diffusion: only block-diffusion models are written in it.
        untied: the head is always a matrix of its own in the files.
    """

    families: Mapping[str, str]
    diffusion: bool = True
    untied: bool = False


FORMATS: Mapping[str, Format] = {
    "hf": Format(
        families={name: name for name in (*_AR, "llada2_moe", "sdar", "sdar_moe")}
        | {"llada2_moe_veomni": "llada2_moe"},
        diffusion=False,
    ),
    "stacked": Format(families=dict.fromkeys(("llada2_moe", "llada2_moe_veomni"), "llada2_moe_veomni")),
    # SDAR's releases have a head of their own, and SGLang's loader fails on a tied one.
    "sdar": Format(
        families={"qwen3": "sdar", "sdar": "sdar", "qwen3_moe": "sdar_moe", "sdar_moe": "sdar_moe"}, untied=True
    ),
}
"""Formats by the name that `difflm export --format` takes."""

_CONFIG_CLASS = '''"""Configuration of this folder's model, for libraries that do not know its model_type."""

from transformers import PretrainedConfig


class Config(PretrainedConfig):
    """Keeps every field of config.json under its own name."""

    model_type = "{model_type}"

    def __init__(self, **fields):
        # Before the base class: its checks of rope_scaling look at other fields.
        for name, value in fields.items():
            if not hasattr(type(self), name):
                setattr(self, name, value)
        super().__init__(**fields)
'''


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What `export` did.

    Attributes:
        target: the folder written.
        family: `model_type` that was written.
        commands: engine -> the command that serves the folder; those that can.
        refused: engine -> why it cannot.
        note: what the folder is for, where it is left-to-right use alone.
    """

    target: Path
    family: str
    commands: Mapping[str, str]
    refused: Mapping[str, tuple[str, ...]]
    note: str | None = None


def export(
    source: str | Path,
    target: str | Path,
    *,
    format: str = "hf",
    engine: str | None = None,
    dtype: str | torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    revision: str | None = None,
    fresh: bool = False,
    observer: Observer | None = None,
) -> Export:
    """Write a checkpoint in the layout that another program loads; a tensor (of experts: some) in memory at a time.

    Format "hf" writes a token-causal model (`clean_attention: causal`) in its parent's class, for left-to-right use.

    The weights are the source's bit for bit (unless `dtype` changes them), and so are tokenizer, chat template and
    licence; the model card says which engine serves the folder and how. What interrupts an export leaves the finished
    weight files beside `target`; the same call continues after them.

    Args:
        source: a checkpoint, as in `load_model`.
        target: an absent or empty folder.
        format: "hf" (the family's own layout, experts one by one), "stacked" (experts of LLaDA2 in one tensor per
            part, for dFactory's trainer) or "sdar" (Qwen3 and its mixture of experts in SDAR's class).
        engine: refuse the export unless this engine serves it: "sglang", "lmdeploy", "dinfer" or "vllm".
        dtype: of the weights on disk; None keeps what is stored.
        max_shard_bytes: largest weight file, bytes.
        revision: commit of a hub id.
        fresh: throw away what an interrupted export to `target` left, instead of continuing it.
        observer: is told of progress; None: what it would note is a warning.

    Raises:
        CheckpointError: the source cannot be used or does not fit format or engine, or `target` is not free, is being
            written or holds an interrupted export of something else.
        ConfigError: an unknown format, engine or dtype.
    """
    layout = _named(FORMATS, format, "format")
    if engine is not None:
        _named(ENGINES, engine, "engine")
    target, stored = Path(target), None if dtype is None else resolve_dtype(dtype)
    require_free(target)
    checkpoint = open_checkpoint(source, revision=revision)
    tokenizer = checkpoint.tokenizer()
    config = checkpoint_config(
        checkpoint.raw, checkpoint.generation, tokenizer_facts(tokenizer), where=checkpoint.where
    )
    family = _family(layout, format, checkpoint, config)
    reasons = {
        name: shortcomings(each, family.name, config) if config.mask_token_id is not None else ("an AR model",)
        for name, each in ENGINES.items()
    }
    if engine is not None and reasons[engine]:
        raise CheckpointError(f"{checkpoint.where}: {ENGINES[engine].title}: {'; '.join(reasons[engine])}")
    plan = _Plan(checkpoint, config, tokenizer, format, layout, family, reasons)
    with resumable_folder(target, fresh=fresh, observer=observer) as stage:
        plan.write(stage, dtype=stored, max_shard_bytes=max_shard_bytes)
    told = {name: found for name, found in reasons.items() if found}
    return Export(target=target, family=family.name, commands=plan.commands(str(target)), refused=told, note=plan.note)


def _named(table: Mapping[str, Any], name: str, field: str) -> Any:
    if name not in table:
        raise ConfigError(f"{field} is {name!r}; expected one of {', '.join(table)}")
    return table[name]


def _family(layout: Format, format: str, checkpoint: Checkpoint, config: CheckpointConfig) -> Family:
    """Return the family that is written.

    Raises:
        CheckpointError: the format does not take this family, or its readers would decode the model wrongly.
    """
    where, name = checkpoint.where, checkpoint.family.name
    if name not in layout.families:
        taken = ", ".join(layout.families)
        raise CheckpointError(f"{where}: model_type is {name!r}; format {format} takes {taken}; use format hf")
    causal = config.mask_token_id is not None and config.clean_attention == "causal"
    if causal and format == "hf":
        return FAMILIES[_AR_CLASSES.get(name, name)]
    family = FAMILIES[layout.families[name]]
    if layout.diffusion and config.mask_token_id is None:
        raise CheckpointError(
            f"{where}: mask_token_id is missing, an AR model; format {format} is for block diffusion: "
            "convert it first, or use format hf"
        )
    if family.name not in DIFFUSION_TYPES:
        return family
    wrong = [
        *(["logit_shift is True, they read every token at its own row"] if config.logit_shift else []),
        *(
            ["clean_attention is 'causal', they show a block the whole of itself and of the blocks before"]
            if config.clean_attention == "causal"
            else []
        ),
        *(
            ["noisy_attention is 'causal', they denoise a block seen from both sides"]
            if config.noisy_attention == "causal"
            else []
        ),
    ]
    if wrong:
        raise CheckpointError(
            f"{where}: {'; '.join(wrong)}: engines that load {family.architecture} would decode it wrongly without a "
            "message; serve it with difflm, or convert and train without that option"
            + ("; for left-to-right use: format hf" if causal else "")
        )
    return family


@dataclass(frozen=True, slots=True)
class _Plan:
    """An export that is decided but not yet on disk."""

    checkpoint: Checkpoint
    config: CheckpointConfig
    tokenizer: Any | None
    format: str
    layout: Format
    family: Family
    reasons: Mapping[str, tuple[str, ...]]

    @property
    def block_size(self) -> int | None:
        """Block size that the model was trained for, generation_config.json first; None where nothing says."""
        stated = self.config.generation.get("block_size")
        return stated if isinstance(stated, int) else self.config.block_size

    @property
    def note(self) -> str | None:
        """What the folder is for, where it is left-to-right use alone: a token-causal model in its parent's class."""
        causal = self.config.mask_token_id is not None and self.config.clean_attention == "causal"
        if not causal or self.family.name in DIFFUSION_TYPES:
            return None
        return (
            f"for left-to-right use: {self.family.architecture} writes the text of decoding next_token and verified; "
            "drafts and blocks are for difflm, with the source"
        )

    @property
    def threshold(self) -> float:
        """Threshold that the checkpoint recommends, else ours."""
        stated = self.config.generation.get("threshold")
        return float(stated) if isinstance(stated, int | float) else 0.95

    def commands(self, target: str) -> dict[str, str]:
        """Return the command of each engine that serves the folder; engines' own block size where nothing says."""
        size = self.block_size or (4 if self.family.name.startswith("sdar") else 32)
        values = {"target": target, "block_size": size, "threshold": self.threshold}
        return {name: ENGINES[name].command.format(**values) for name, found in self.reasons.items() if not found}

    def write(self, stage: Stage, *, dtype: torch.dtype | None, max_shard_bytes: int) -> None:
        """Fill the stage."""
        checkpoint = self.checkpoint
        parameters: Mapping[str, Tensor] = checkpoint.parameters(self.config.model)
        architecture = self.config.model
        if self.layout.untied and architecture.tied_embeddings:
            parameters = _Untied(parameters)
            architecture = replace(architecture, tied_embeddings=False)
        raw = self._raw(architecture)
        own_class = self.family.name in DIFFUSION_TYPES
        options = {"format": self.format, "dtype": dtype and str(dtype), "max_shard_bytes": max_shard_bytes}
        stage.begin("export", options, hash_checkpoints({"": checkpoint}, stage.observer))
        self._write_texts(stage.folder, raw)
        write_model(
            stage.folder,
            parameters,
            self.family,
            architecture,
            raw=raw,
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
            indexed=own_class,  # dInfer opens nothing but an index
            ledger=stage,
        )
        if own_class:
            _write_config_class(stage.folder, self.family)

    def _raw(self, architecture: ModelConfig) -> dict[str, Any]:
        """Return config.json."""
        checkpoint, config, where = self.checkpoint, self.config, self.checkpoint.where
        if self.family.name == checkpoint.family.name and self.family.name not in DIFFUSION_TYPES:
            return updated_config(checkpoint.raw, architecture, where)
        raw = rewritten_config(checkpoint.raw, architecture, self.family, where)
        stated = {
            "block_size": config.block_size,
            "mask_token_id": config.mask_token_id,
            "mask_token": config.mask_token,
            "logit_shift": config.logit_shift,
            "clean_attention": config.clean_attention,
            "noisy_attention": config.noisy_attention,
        }
        raw |= {name: value for name, value in stated.items() if value is not None}
        eos = config.eos_token_ids
        named = {"bos_token_id": config.bos_token_id, "pad_token_id": config.pad_token_id}
        # Engines read these as attributes: an absent one is an error there, or a class default.
        raw |= {name: raw.get(name, value) for name, value in named.items()}
        raw.setdefault("eos_token_id", eos[0] if eos else None)
        raw["torch_dtype"] = raw.pop("dtype", raw.get("torch_dtype"))  # the name that every version reads
        record = dict(raw.get("difflm") or {})
        raw["difflm"] = record | {"export": {"format": self.format, "version": difflm.__version__}}
        return raw if self.note is None else raw | {"use_cache": True}

    def _write_texts(self, stage: Path, raw: Mapping[str, Any]) -> None:
        """Write everything but weights and config.json."""
        checkpoint, config = self.checkpoint, self.config
        generation = without_remote_code(checkpoint.generation)
        if config.mask_token_id is not None and config.eos_token_ids:
            # Engines stop at these, and at no other id.
            generation["eos_token_id"] = list(config.eos_token_ids)
        if self.note is not None and config.mask_token_id is not None:
            # Other libraries know nothing of MASK: it must not be written there either.
            generation["suppress_tokens"] = sorted({*(generation.get("suppress_tokens") or ()), config.mask_token_id})
        if generation:
            write_json(stage / "generation_config.json", generation)
        write_tokenizer(stage, checkpoint.path, self.tokenizer)
        if not self.reasons["sglang"]:
            size = "" if self.block_size is None else f"block_size: {self.block_size}\n"
            (stage / "sglang.yaml").write_text(f"{size}threshold: {self.threshold}\n", encoding="utf-8")
        if card := self._card(raw):
            (stage / "README.md").write_text(card, encoding="utf-8")

    def _card(self, raw: Mapping[str, Any]) -> str:
        """Return the model card: ours where difflm made the model, else the source's own; and who serves it."""
        path = self.checkpoint.path / "README.md"
        ours = bool((raw.get("difflm") or {}).get("parent"))
        card = model_card(raw) if ours else path.read_text(encoding="utf-8") if path.is_file() else ""
        if self.config.mask_token_id is None:
            return card
        commands = self.commands("path/to/this/folder")
        rows = {ENGINES[name].title: commands.get(name) or found for name, found in self.reasons.items()}
        return with_serving(card, rows)


@dataclass(frozen=True, slots=True, eq=False)
class _Untied(Parameters):
    """Parameters of a model with tied embeddings, the head a copy of the embedding."""

    tied: Mapping[str, Tensor]

    def take(self, names: Sequence[str], experts: range | None = None) -> list[Tensor]:
        """Return parameters, or some experts of stacks."""
        return take(self.tied, [_tied_name(name) for name in names], experts)

    def outline(self, name: str) -> Tensor:
        """Return a parameter's shape and dtype."""
        return outline(self.tied, _tied_name(name))

    def __iter__(self) -> Iterator[str]:
        yield from self.tied
        yield "head.weight"

    def __len__(self) -> int:
        return len(self.tied) + 1


def _tied_name(name: str) -> str:
    return "embedding.weight" if name == "head.weight" else name


def _write_config_class(folder: Path, family: Family) -> None:
    """Add the class that AutoConfig needs for a `model_type` it does not know; it runs only with trust_remote_code."""
    module = f"configuration_{family.name}"
    (folder / f"{module}.py").write_text(_CONFIG_CLASS.format(model_type=family.name), encoding="utf-8")
    path = folder / "config.json"
    write_json(path, read_json(path) | {"auto_map": {"AutoConfig": f"{module}.Config"}})
