"""The mean of several checkpoints of one model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difflm.checkpoints.adapter_config import ADAPTER_WEIGHTS, is_adapter, read_adapter_config
from difflm.checkpoints.buffers import buffer, pieces
from difflm.checkpoints.card import model_card
from difflm.checkpoints.families import model_config, updated_config
from difflm.checkpoints.fields import merged, write_json
from difflm.checkpoints.folders import require_free
from difflm.checkpoints.hf import MAX_SHARD_BYTES, file_sha256, listed
from difflm.checkpoints.loading import resolve_dtype
from difflm.checkpoints.parameters import Parameters, outline, take
from difflm.checkpoints.resume import Observer, Stage, hash_checkpoints, resumable_folder
from difflm.checkpoints.rules import stored_dtype
from difflm.checkpoints.saving import without_remote_code, write_model, write_tokenizer
from difflm.checkpoints.source import Checkpoint, open_base, open_checkpoint, with_adapters
from difflm.errors import CheckpointError, ConfigError

_MAY_DIFFER = ("difflm", "transformers_version", "_name_or_path")


def average_checkpoints(
    paths: Sequence[str | Path],
    target: str | Path,
    *,
    weights: Sequence[float] | None = None,
    base: str | Path | None = None,
    dtype: str | torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    fresh: bool = False,
    observer: Observer | None = None,
) -> None:
    """Write the mean of checkpoints, accumulated in float32 tensor by tensor, experts a few at a time.

    What interrupts it leaves the finished weight files beside `target`; the same call continues after them.

    Configuration, tokenizer and model card are the first checkpoint's; the merged folders are recorded with their
    shares and hashes. Adapters (one or more of one base) are merged into their base: W + the mean of their deltas, in
    float32, cast once.

    Args:
        paths: checkpoints of one model; a path given twice counts twice.
        target: an absent or empty folder.
        weights: one for each path, at least 0; divided by their sum. None: all equal.
        base: of adapters, instead of the one that they name.
        dtype: of the weights on disk; None keeps the stored ones. Small deltas round away in bfloat16, not in float32.
        max_shard_bytes: largest weight file, bytes.
        fresh: throw away what an interrupted merge to `target` left, instead of continuing it.
        observer: is told of progress; None: what it would note is a warning.

    Raises:
        ConfigError: no paths, or weights that do not belong to them.
        CheckpointError: configuration, names, shapes, dtypes or tokenizers differ, or `target` is not free, is being
            written or holds an interrupted merge of something else.
    """
    shares = _shares(paths, weights)
    target = Path(target)
    require_free(target)
    kind = None if dtype is None else resolve_dtype(dtype)
    mean = _mean(paths, shares, base=base, dtype=kind)
    with resumable_folder(target, fresh=fresh, observer=observer) as stage:
        mean.write(stage, shares or [1.0 / len(paths)] * len(paths), dtype=kind, max_shard_bytes=max_shard_bytes)


def mean_parameters(paths: Sequence[str | Path], weights: Sequence[float] | None = None) -> Mapping[str, Tensor]:
    """Return the mean of checkpoints by parameter, computed when one is asked for; nothing is written.

    Args:
        paths: checkpoints of one model.
        weights: one for each path, at least 0; divided by their sum. None: all equal.

    Raises:
        ConfigError: no paths, or weights that do not belong to them.
        CheckpointError: configuration, names, shapes, dtypes or tokenizers differ.
    """
    return _mean(paths, _shares(paths, weights)).parameters


@dataclass(frozen=True, slots=True, eq=False)
class _Mean:
    """What is merged: checkpoints, or adapters of one base."""

    first: Checkpoint
    parameters: Mapping[str, Tensor]
    checkpoints: Sequence[Checkpoint] = ()
    adapters: Sequence[Path] = ()

    def write(self, stage: Stage, shares: Sequence[float], *, dtype: torch.dtype | None, max_shard_bytes: int) -> None:
        """Fill the stage."""
        first = self.first
        config = model_config(first.raw, first.where)
        inputs, hashes = self.hashed(stage.observer)
        options = {"weights": list(shares), "dtype": dtype and str(dtype), "max_shard_bytes": max_shard_bytes}
        stage.begin("merge", options, inputs)
        record = [
            {"name": name, "weight": share, "sha256": files}
            for (name, files), share in zip(hashes, shares, strict=True)
        ]
        raw = merged(updated_config(first.raw, config, first.where), {"difflm": {"merged": record}})
        if first.generation:
            write_json(stage.folder / "generation_config.json", without_remote_code(first.generation))
        write_tokenizer(stage.folder, first.path, first.tokenizer() if first.is_gguf else None)
        if raw.get("mask_token_id") is not None:
            (stage.folder / "README.md").write_text(model_card(raw), encoding="utf-8")
        write_model(
            stage.folder,
            self.parameters,
            first.family,
            config,
            raw=raw,
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
            ledger=stage,
        )

    def hashed(self, observer: Observer) -> tuple[dict[str, str], list[tuple[str, dict[str, str]]]]:
        """Return the hashes of everything that is read; and name and hashes of the weight files of each member."""
        if self.adapters:
            inputs = hash_checkpoints({"": self.first}, observer)
            files = [{ADAPTER_WEIGHTS: file_sha256(each / ADAPTER_WEIGHTS)} for each in self.adapters]
            return inputs, [(each.resolve().name, own) for each, own in zip(self.adapters, files, strict=True)]
        members = {f"{number}/": each for number, each in enumerate(self.checkpoints)}
        inputs = hash_checkpoints(members, observer)
        return inputs, [
            (each.name, {file.name: inputs[start + file.name] for file in each.weights.files})
            for start, each in members.items()
        ]


def _mean(
    paths: Sequence[str | Path],
    shares: list[float] | None,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> _Mean:
    """Return the mean of checkpoints or adapters, opened."""
    folders = [Path(path) for path in paths]
    if any(is_adapter(folder) for folder in folders):
        first = _adapters(folders, shares, base=base, dtype=dtype)
        return _Mean(first, first.parameters(model_config(first.raw, first.where)), adapters=folders)
    if base is not None:
        raise ConfigError(f"base: {base} is the base of adapters, but {folders[0]} is none; leave it out")
    opened = _opened(paths)
    config = model_config(opened[0].raw, opened[0].where)
    mean = MeanParameters([each.parameters(config) for each in opened], shares, dtype)
    return _Mean(opened[0], mean, checkpoints=opened)


def _adapters(
    folders: Sequence[Path], shares: list[float] | None, *, base: str | Path | None, dtype: torch.dtype | None
) -> Checkpoint:
    """Return the base of adapters with their mean merged in."""
    whole = [folder for folder in folders if not is_adapter(folder)]
    if whole:
        raise CheckpointError(f"{whole[0]}: is no adapter, others are; merge those into their base first")
    opened = open_base(folders[0]) if base is None else open_checkpoint(base)
    origins = {folder: read_adapter_config(folder).base for folder in folders}
    others = [folder for folder, origin in origins.items() if origin != origins[folders[0]]]
    if base is None and others:
        raise CheckpointError(
            f"{others[0]}: its base is {origins[others[0]]}, that of {folders[0]} is {origins[folders[0]]}; average "
            "adapters of one base"
        )
    found = with_adapters(opened, folders, shares or [1.0 / len(folders)] * len(folders), dtype=dtype)
    assert found.adapter is not None
    first, *rest = (member.facts.updates for member in found.adapter.members)
    for folder, updates in zip(folders[1:], rest, strict=True):
        if names := _differing(first, updates):
            raise CheckpointError(f"{folder}: {listed(names)} differ from {folders[0]}; average one model's adapters")
    return found


@dataclass(frozen=True, slots=True, eq=False)
class MeanParameters(Parameters):
    """The mean of several sets of parameters, computed in float32 when a parameter is asked for.

    Attributes:
        members: parameters of each checkpoint.
        shares: of each, adding up to 1; None: all equal.
        dtype: of the mean; None: that of the first member's.
    """

    members: Sequence[Mapping[str, Tensor]]
    shares: Sequence[float] | None = None
    dtype: torch.dtype | None = None

    def take(self, names: Sequence[str], experts: range | None = None) -> list[Tensor]:
        """Return the means of parameters, or of some experts of stacks."""
        # A plain sum is divided once, so that copies of one checkpoint average to itself.
        factors = [1.0] * len(self.members) if self.shares is None else self.shares
        (first, scale), *rest = [(each, factor) for each, factor in zip(self.members, factors, strict=True) if factor]
        own = take(first, names, experts)
        kinds = [each.dtype for each in own]
        if self.dtype is not None:
            kinds = [stored_dtype(name, self.dtype) for name in names]
        totals = [_copied(each, torch.float32).mul_(scale) for each in own]
        del own
        for member, factor in rest:
            _add(totals, take(member, names, experts), factor)
        if self.shares is None:
            totals = [total.div_(len(self.members)) for total in totals]
        return [
            total if kind == total.dtype else _copied(total, kind) for total, kind in zip(totals, kinds, strict=True)
        ]

    def outline(self, name: str) -> Tensor:
        """Return a parameter's shape and dtype."""
        found = outline(self.members[0], name)
        return found if self.dtype is None else found.to(stored_dtype(name, self.dtype))

    def __iter__(self) -> Iterator[str]:
        return iter(self.members[0])

    def __len__(self) -> int:
        return len(self.members[0])


def _add(totals: Sequence[Tensor], others: Sequence[Tensor], factor: float) -> None:
    for total, other in zip(totals, others, strict=True):
        for some, more in zip(pieces(total), pieces(other), strict=True):
            some.add_(more.to(torch.float32), alpha=factor)


def _copied(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return buffer(tensor.shape, dtype).copy_(tensor)


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
