"""The mean of several checkpoints of one model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difflm.checkpoints.card import model_card
from difflm.checkpoints.families import model_config
from difflm.checkpoints.fields import write_json
from difflm.checkpoints.folders import require_free, staged_folder
from difflm.checkpoints.hf import MAX_SHARD_BYTES, file_sha256, listed
from difflm.checkpoints.saving import merged, without_remote_code, write_model, write_tokenizer
from difflm.checkpoints.source import Checkpoint, open_checkpoint
from difflm.errors import CheckpointError, ConfigError

_MAY_DIFFER = ("difflm", "transformers_version", "_name_or_path")


def average_checkpoints(
    paths: Sequence[str | Path],
    target: str | Path,
    *,
    weights: Sequence[float] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the mean of checkpoints, accumulated in float32 tensor by tensor; one weight file in memory.

    Configuration, tokenizer and model card are the first checkpoint's; the merged folders are recorded with their
    shares and hashes.

    Args:
        paths: checkpoints of one model; a path given twice counts twice.
        target: an absent or empty folder.
        weights: one for each path, at least 0; divided by their sum. None: all equal.
        max_shard_bytes: largest weight file, bytes.

    Raises:
        ConfigError: no paths, or weights that do not belong to them.
        CheckpointError: configuration, names, shapes, dtypes or tokenizers differ, or `target` is not free.
    """
    shares = _shares(paths, weights)
    target = Path(target)
    require_free(target)
    opened = _opened(paths)
    first = opened[0]
    config = model_config(first.raw, first.where)
    parameters = MeanParameters([each.parameters(config) for each in opened], shares)
    record = [
        {"name": each.name, "weight": 1.0 / len(opened) if shares is None else share, "sha256": _hashes(each)}
        for each, share in zip(opened, shares or [0.0] * len(opened), strict=True)
    ]
    raw = merged(first.raw, {"difflm": {"merged": record}})
    tokenizer = first.tokenizer() if first.is_gguf else None
    with staged_folder(target) as stage:
        write_model(stage, parameters, first.family, config, raw=raw, dtype=None, max_shard_bytes=max_shard_bytes)
        if first.generation:
            write_json(stage / "generation_config.json", without_remote_code(first.generation))
        write_tokenizer(stage, first.path, tokenizer)
        if raw.get("mask_token_id") is not None:
            (stage / "README.md").write_text(model_card(raw), encoding="utf-8")


def mean_parameters(paths: Sequence[str | Path], weights: Sequence[float] | None = None) -> MeanParameters:
    """Return the mean of checkpoints by parameter, computed when one is asked for; nothing is written.

    Args:
        paths: checkpoints of one model.
        weights: one for each path, at least 0; divided by their sum. None: all equal.

    Raises:
        ConfigError: no paths, or weights that do not belong to them.
        CheckpointError: configuration, names, shapes, dtypes or tokenizers differ.
    """
    shares = _shares(paths, weights)
    opened = _opened(paths)
    config = model_config(opened[0].raw, opened[0].where)
    return MeanParameters([each.parameters(config) for each in opened], shares)


@dataclass(frozen=True, slots=True, eq=False)
class MeanParameters(Mapping[str, Tensor]):
    """The mean of several sets of parameters, computed in float32 when a parameter is asked for.

    Attributes:
        members: parameters of each checkpoint.
        shares: of each, adding up to 1; None: all equal.
    """

    members: Sequence[Mapping[str, Tensor]]
    shares: Sequence[float] | None = None

    def __getitem__(self, name: str) -> Tensor:
        # A plain sum is divided once, so that copies of one checkpoint average to itself.
        factors = [1.0] * len(self.members) if self.shares is None else self.shares
        parts = [(member, factor) for member, factor in zip(self.members, factors, strict=True) if factor]
        first = parts[0][0][name]
        total = first.to(torch.float32, copy=True).mul_(parts[0][1])
        for member, factor in parts[1:]:
            total.add_(member[name].to(torch.float32), alpha=factor)
        return (total.div_(len(self.members)) if self.shares is None else total).to(first.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.members[0])

    def __len__(self) -> int:
        return len(self.members[0])


def _shares(paths: Sequence[str | Path], weights: Sequence[float] | None) -> list[float] | None:
    """Return the weights divided by their sum; None if all are equal."""
    if not paths:
        raise ConfigError("paths is empty; expected at least one checkpoint to average")
    if weights is None:
        return None
    if len(weights) != len(paths):
        raise ConfigError(f"weights: {len(weights)} for {len(paths)} checkpoints; give one for each, or none")
    bad = [weight for weight in weights if not (math.isfinite(weight) and weight >= 0)]
    total = math.fsum(weights)
    if bad or total <= 0:
        raise ConfigError(f"weights: {list(weights)}; each must be a number of at least 0, and one must be above 0")
    return None if len(set(weights)) == 1 else [weight / total for weight in weights]


def _opened(paths: Sequence[str | Path]) -> list[Checkpoint]:
    opened = [open_checkpoint(path) for path in paths]
    for other in opened[1:]:
        _require_same(opened[0], other)
    return opened


def _require_same(first: Checkpoint, other: Checkpoint) -> None:
    """Check that two checkpoints are of one model."""
    differing = _differing(first.raw, other.raw)
    if differing:
        raise CheckpointError(
            f"{other.where}: {listed(differing)} differ from {first.where}; average one model's checkpoints"
        )
    pairs = ((name, fact, other.weights.facts.get(name)) for name, fact in first.weights.facts.items())
    dtypes = [name for name, fact, match in pairs if match is not None and match.dtype != fact.dtype]
    if dtypes:
        raise CheckpointError(
            f"{other.path}: dtype of {listed(dtypes, 3)} differs from {first.path}; save both in one dtype"
        )
    tokenizers = [path / "tokenizer.json" for path in (first.path, other.path)]
    present = [path.is_file() for path in tokenizers]
    if any(present) and (not all(present) or tokenizers[0].read_bytes() != tokenizers[1].read_bytes()):
        raise CheckpointError(f"{tokenizers[1]}: differs from {tokenizers[0]}; average one model's checkpoints")


def _differing(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    names = sorted({*left, *right} - {*_MAY_DIFFER})
    return [name for name in names if left.get(name) != right.get(name)]


def _hashes(checkpoint: Checkpoint) -> dict[str, str]:
    return {file.name: file_sha256(file) for file in checkpoint.weights.files}
