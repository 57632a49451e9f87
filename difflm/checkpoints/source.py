"""A checkpoint on disk, opened but not loaded: HF folder, GGUF file, or a folder with one GGUF file."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from difflm.checkpoints import hf
from difflm.checkpoints.adapter import AdapterMean, digest_of, read_adapter, refuse_gated
from difflm.checkpoints.adapter_config import is_adapter, read_adapter_config
from difflm.checkpoints.card import licence_of_card
from difflm.checkpoints.config import TokenizerFacts, check_files
from difflm.checkpoints.families import Family, find_family, model_config, mtp_layers, refuse_quantised
from difflm.checkpoints.fields import merged, read_json, read_optional_json
from difflm.checkpoints.gguf import gguf_config, open_gguf
from difflm.checkpoints.hub import HubOrigin, locate
from difflm.checkpoints.parameters import Parameters, disk_parts
from difflm.checkpoints.rules import IGNORED_ON_DISK, KeyRule, Shape, key_map, stored_dtype
from difflm.checkpoints.tokens import (
    carried_text_files,
    is_ordinary,
    load_tokenizer,
    special_token_ids,
    turn_token_ids,
    vocabulary,
)
from difflm.errors import CheckpointError
from difflm.models.config import ModelConfig
from difflm.models.transformer import Transformer


class WeightFiles(Protocol):
    """Opened weight files."""

    files: tuple[Path, ...]
    facts: dict[str, hf.TensorFact]

    def read(self, name: str, rows: range | None = None) -> Tensor:
        """Return one tensor on the CPU, or some rows of its first dimension."""
        ...


@dataclass(slots=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        path: HF folder or GGUF file.
        is_gguf: which of the two.
        family: model family.
        raw: config.json (for GGUF: made from the metadata).
        generation: generation_config.json.
        weights: opened weight files.
        licence: licence that the parent's model card or metadata states, if any.
        has_gguf_tokenizer: the GGUF file holds a tokenizer.
        hub: where it came from, None for a local one.
        adapter: merged into the parameters as they are read; everything else is the base's.
    """

    path: Path
    is_gguf: bool
    family: Family
    raw: dict[str, Any]
    generation: dict[str, Any]
    weights: WeightFiles
    licence: str | None
    has_gguf_tokenizer: bool = False
    hub: HubOrigin | None = None
    adapter: AdapterMean | None = None

    @property
    def where(self) -> str:
        """Path of the configuration, for errors."""
        return str(self.path if self.is_gguf else self.path / "config.json")

    @property
    def name(self) -> str:
        """Hub id, or name of the folder or file without its path."""
        return self.hub.repository if self.hub else self.path.resolve().name

    def tokenizer(self) -> Any | None:
        """Return the transformers tokenizer, None where the checkpoint has none."""
        check_files(self.raw, self.generation, self.where)
        if not self.is_gguf:
            return load_tokenizer(self.path)
        return load_tokenizer(self.path.parent, gguf_file=self.path.name) if self.has_gguf_tokenizer else None

    def parameters(self, config: ModelConfig, *, merge: bool = True) -> StoredParameters:
        """Return the model's parameters, read one by one on demand, after a strict check of names and shapes.

        Args:
            config: architecture.
            merge: an adapter into them; otherwise they are the base's.

        Raises:
            CheckpointError: tensors that do not fit, an adapter that was trained on another base, or one for noisy rows
                alone that should be merged.
        """
        members = self.adapter.members if self.adapter else ()
        for member in members if merge else ():
            refuse_gated(member.facts, str(self.path))
        known = {member.facts.base_sha256 for member in members} - {""}
        if known and known != {self.digest()}:
            raise CheckpointError(
                f"{self.path}: config.json or weights are not those that the adapter was trained on (by sha256); "
                "give the adapter its own base"
            )
        rules = self.family.gguf_rules if self.is_gguf else self.family.hf_rules
        assert rules is not None, "gguf_config accepts only families with GGUF rules"
        layers = range(config.num_layers, config.num_layers + mtp_layers(self.raw, self.where))
        stored = stored_parameters(self.weights, rules, config, left_out=tuple(f"model.layers.{n}." for n in layers))
        return replace(stored, adapter=self.adapter) if merge else stored

    def inputs(self) -> dict[str, Path]:
        """Return every file that a copy of the checkpoint is made from, by its name in the folder."""
        if self.is_gguf:
            return {self.path.name: self.path}
        names = [name for name in ("config.json", "generation_config.json") if (self.path / name).is_file()]
        paths = [*(self.path / name for name in names), *self.weights.files, *carried_text_files(self.path)]
        return {path.relative_to(self.path).as_posix(): path for path in paths}

    def digest(self) -> str:
        """Return a hash of configuration and weights (of the base, if there is an adapter)."""
        return digest_of(self.weights.files if self.is_gguf else (self.path / "config.json", *self.weights.files))


def open_checkpoint(source: str | Path, *, revision: str | None = None) -> Checkpoint:
    """Open a checkpoint; which kind it is, is decided by the files.

    Args:
        source: HF folder, GGUF file, folder with one GGUF file, or a hub id (see `difflm.checkpoints.hub`).
        revision: commit of a hub id.

    Raises:
        CheckpointError: nothing there that can be used.
        ConfigError: `revision` is no commit.
    """
    path, hub = locate(source, revision)
    if is_adapter(path):
        return with_adapters(open_base(path), [path])
    opened = _open(path)
    opened.hub = hub
    return opened


def with_adapters(
    base: Checkpoint, folders: Sequence[Path], shares: Sequence[float] = (1.0,), *, dtype: torch.dtype | None = None
) -> Checkpoint:
    """Return a checkpoint whose parameters are those of `base` with the mean of adapters merged in.

    Args:
        base: without an adapter.
        folders: of the adapters; fields of config.json and generation_config.json that they change are those of the
            first.
        shares: of each, adding up to 1.
        dtype: of the merged parameters; None keeps the stored one.

    Raises:
        CheckpointError: files of an adapter that cannot be used, or do not fit the base.
    """
    if base.adapter is not None:
        raise CheckpointError(
            f"{base.path}: the base of an adapter is an adapter itself; merge that into its base first"
        )
    config = model_config(base.raw, base.where)
    members = tuple(read_adapter(folder, base.family, config) for folder in folders)
    raw = merged(base.raw, members[0].facts.updates)
    generation = merged(base.generation, read_optional_json(folders[0] / "generation_config.json"))
    return replace(base, raw=raw, generation=generation, adapter=AdapterMean(members, tuple(shares), dtype))


def open_base(folder: Path) -> Checkpoint:
    """Open the base that an adapter names.

    Raises:
        CheckpointError: it names none, or one that is not here.
    """
    told = read_adapter_config(folder)
    advice = f"load_model(BASE, adapter={str(folder)!r}), or difflm merge {folder} --base BASE"
    if told.base is None:
        raise CheckpointError(f"{told.where}: base_model_name_or_path is missing; write it there, or name it: {advice}")
    if not Path(told.base).exists() and told.revision is None:
        raise CheckpointError(
            f"{told.where}: base_model_name_or_path is {told.base!r}, which is not here; mend it there (a hub id needs "
            f"its commit in revision), or name the base: {advice}"
        )
    return open_checkpoint(told.base, revision=told.revision)


def _open(path: Path) -> Checkpoint:
    if path.is_file():
        if path.suffix != ".gguf":
            pickled = "; pickle files are never opened" if path.suffix in hf.PICKLE_SUFFIXES else ""
            raise CheckpointError(
                f"{path}: not a checkpoint{pickled}; expected a folder with config.json, or a .gguf file"
            )
        return _open_gguf(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder; expected a local checkpoint (nothing is downloaded)")
    has_safetensors = (path / hf.SINGLE_FILE).exists() or (path / hf.INDEX_FILE).exists()
    packed = sorted(path.glob("*.gguf"))
    if not has_safetensors and len(packed) == 1:
        return _open_gguf(packed[0])
    if not has_safetensors and packed:
        raise CheckpointError(
            f"{path}: holds {len(packed)} .gguf files ({hf.listed(p.name for p in packed)}); name one"
        )
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: no config.json; expected a checkpoint folder or a .gguf file")
    raw = read_json(path / "config.json")
    family = find_family(raw, str(path / "config.json"))
    refuse_quantised(raw, str(path / "config.json"))
    generation = read_optional_json(path / "generation_config.json")
    return Checkpoint(path, False, family, raw, generation, hf.open_safetensors(path), licence_of_card(path))


def _open_gguf(path: Path) -> Checkpoint:
    weights = open_gguf(path)
    raw, generation = gguf_config(weights)
    licence = weights.metadata.get("general.license")
    has_tokenizer = "tokenizer.ggml.model" in weights.metadata
    return Checkpoint(path, True, find_family(raw, str(path)), raw, generation, weights, licence, has_tokenizer)


def tokenizer_facts(tokenizer: Any | None) -> TokenizerFacts | None:
    """Return what the configuration needs to know of a tokenizer."""
    if tokenizer is None:
        return None
    return TokenizerFacts(
        ids=vocabulary(tokenizer),
        special=special_token_ids(tokenizer),
        turns=turn_token_ids(tokenizer),
        is_ordinary=functools.partial(is_ordinary, tokenizer),
    )


def parameter_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Return the shape of everything that `Transformer` stores, tied parameters once; allocates nothing."""
    with torch.device("meta"):
        model = Transformer(config)
    return {name: tuple(tensor.shape) for name, tensor in model.stored_tensors().items()}


@dataclass(frozen=True, slots=True, eq=False)
class StoredParameters(Parameters):
    """Parameters of a model by name, read from the files each time they are asked for, an adapter merged in.

    Attributes:
        weights: opened weight files.
        config: architecture.
        source: parameter name -> the rule that makes it.
        shapes: of each parameter.
        left_out: tensors of the files that the model has no use for (multi-token-prediction layers).
        adapter: merged into what is read.
    """

    weights: WeightFiles
    config: ModelConfig
    source: Mapping[str, KeyRule]
    shapes: Mapping[str, Shape]
    left_out: tuple[str, ...] = ()
    adapter: AdapterMean | None = None

    def take(self, names: Sequence[str], experts: range | None = None) -> list[Tensor]:
        """Return parameters, or some experts of stacks; a tensor of the files that several are made of is read once."""
        made: dict[str, list[Tensor]] = {}
        found = []
        for name in names:
            rule = self.source[name]
            if rule.disk[0] not in made:
                made[rule.disk[0]] = self._read(rule, experts)
            tensor = made[rule.disk[0]][rule.model.index(name)]
            found.append(tensor if self.adapter is None else self.adapter.merged(name, tensor, experts))
        return found

    def outline(self, name: str) -> Tensor:
        """Return a parameter's shape and dtype."""
        if self.adapter is not None and self.adapter.dtype is not None:
            kind = stored_dtype(name, self.adapter.dtype)
        else:
            kind = self._dtype(self.source[name])
        return torch.empty(self.shapes[name], dtype=kind, device="meta")

    def _dtype(self, rule: KeyRule) -> torch.dtype:
        """Return the dtype of what a rule makes: the widest of what it reads."""
        return functools.reduce(torch.promote_types, (self.weights.facts[name].dtype for name in rule.disk))

    def _read(self, rule: KeyRule, experts: range | None) -> list[Tensor]:
        if experts is None:
            return rule.change.to_model([self.weights.read(name) for name in rule.disk], self.config)
        parts = [self.weights.read(name, rows) for name, rows in disk_parts(rule, experts, self.config)]
        # The dtype of the whole stack, whichever experts these are.
        return [each.to(self._dtype(rule)) for each in rule.change.to_model(parts, self.config)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.source)

    def __len__(self) -> int:
        return len(self.source)


def stored_parameters(
    weights: WeightFiles, rules: Sequence[KeyRule], config: ModelConfig, *, left_out: tuple[str, ...] = ()
) -> StoredParameters:
    """Check the files against the architecture and return its parameters.

    Args:
        weights: opened weight files.
        rules: names of tensors.
        config: architecture.
        left_out: beginnings of names of tensors that are not read.

    Raises:
        CheckpointError: missing tensors, unexpected tensors and wrong shapes, all in one message.
    """
    shapes = parameter_shapes(config)
    filled = key_map(rules, shapes, config)
    expected: dict[str, Shape] = {}
    for rule in filled:
        wanted = rule.change.disk_shapes([shapes[name] for name in rule.model], config)
        expected |= dict(zip(rule.disk, wanted, strict=True))
    found = {name: fact for name, fact in weights.facts.items() if not name.endswith(IGNORED_ON_DISK)}
    dropped = tuple(sorted(name for name in found if left_out and name.startswith(left_out)))
    found = {name: fact for name, fact in found.items() if name not in dropped}
    _drop_equal_head(found, expected, weights, rules, config)
    problems = []
    if missing := [name for name in expected if name not in found]:
        problems.append(f"missing: {hf.listed(missing)}")
    if unexpected := sorted(set(found) - set(expected)):
        problems.append(f"unexpected: {hf.listed(unexpected)}")
    wrong = [
        f"{name} is {list(found[name].shape)}, config.json says {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    if wrong:
        problems.append(f"wrong shape: {hf.listed(wrong, 4)}")
    if problems:
        place = weights.files[0] if len(weights.files) == 1 else weights.files[0].parent
        raise CheckpointError(f"{place}: tensors do not fit the configuration; {'; '.join(problems)}")
    return StoredParameters(weights, config, {name: rule for rule in filled for name in rule.model}, shapes, dropped)


def _drop_equal_head(
    found: dict[str, hf.TensorFact],
    expected: Mapping[str, Shape],
    weights: WeightFiles,
    rules: Sequence[KeyRule],
    config: ModelConfig,
) -> None:
    """Accept a head beside a tied embedding if it is the same matrix (some exporters write both)."""
    disk = {rule.model[0]: rule.disk[0] for rule in rules}
    head, embedding = disk["head.weight"], disk["embedding.weight"]
    if not config.tied_embeddings or head not in found or embedding not in found or head in expected:
        return
    if not torch.equal(weights.read(head), weights.read(embedding)):
        raise CheckpointError(
            f"{weights.files[0].parent / found[head].file}: {head} differs from {embedding} but tie_word_embeddings is "
            "true; set it to false in config.json if the head is meant to be its own"
        )
    del found[head]
