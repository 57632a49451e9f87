"""The paths of a run -> token stores: raw files are read and tokenised, prepared folders opened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from difflm.checkpoints.loading import LoadedModel
from difflm.checkpoints.tokens import tokenizer_fingerprint
from difflm.data.documents import Document
from difflm.data.formats import Found, listed
from difflm.data.records import Fields
from difflm.data.shards import Prepared, is_prepared, open_prepared
from difflm.data.sources import list_files, read_documents
from difflm.data.store import MemoryStore, TokenStore, joined
from difflm.data.tokens import Special, token_groups
from difflm.errors import ConfigError, DataError
from difflm.training.config import DataConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Documents that are packed together.

    Attributes:
        name: path, for messages.
        kind: of the documents.
        store: documents that are not split yet, or the training side of a prepared folder.
        held: the validation side of a prepared folder; None where nothing was split off.
        weight: share in a mixture; None without weights.
        notes: what was concluded about the files.
    """

    name: str
    kind: str
    store: TokenStore
    held: TokenStore | None = None
    weight: float | None = None
    notes: tuple[str, ...] = ()


def special_ids(loaded: LoadedModel, *, field: str = "train.model") -> Special:
    """Return the ids with a meaning of a checkpoint; `field` names it in an error.

    Raises:
        ConfigError: a checkpoint without tokenizer or EOS.
    """
    if loaded.tokenizer is None:
        raise ConfigError(f"{field}: {loaded.path} has no tokenizer; copy the parent's tokenizer files into it")
    if not loaded.config.eos_token_ids:
        raise ConfigError(f"{field}: {loaded.path} names no EOS token; set eos_token_id in its config.json")
    return Special(
        eos=loaded.config.eos_token_ids[0],
        ends=loaded.config.eos_token_ids[1:],
        mask=loaded.config.mask_token_id,
        vocabulary=loaded.config.tokenizer_length,
    )


def open_sources(
    paths: Sequence[Path], weights: Sequence[float], data: DataConfig, loaded: LoadedModel
) -> list[Source]:
    """Return the sources behind paths: one a path with weights, otherwise one for all (or those of a prepared mixture).

    Raises:
        ConfigError: a checkpoint without tokenizer or EOS.
        DataError: files that cannot be used, or documents of two kinds without weights.
    """
    special = special_ids(loaded)
    _refuse_twice(paths, data)
    if weights:
        found = []
        for path, weight in zip(paths, weights, strict=True):
            group = _open([path], data, loaded, special)
            total = sum(1.0 if each.weight is None else each.weight for each in group)
            found += [replace(each, weight=weight * (each.weight or 1.0) / total) for each in group]
        return found
    runs = groupby(paths, key=lambda path: str(path) if is_prepared(path) else "")
    found = [source for _, run in runs for source in _open(list(run), data, loaded, special)]
    if all(source.weight is not None for source in found):
        return found
    for source in found:
        if source.weight is not None:
            raise DataError(
                f"{source.name}: was prepared as a part of a mixture, and stands beside other paths; give each path "
                "its weight (data.weights)"
            )
        if source.kind != found[0].kind:
            raise DataError(
                f"{source.name}: {source.kind} documents in data that began with {found[0].kind} documents "
                f"({found[0].name}); train on them separately, or give weights (data.weights)"
            )
    return [_concatenated(found)]


def _concatenated(sources: list[Source]) -> Source:
    held = [source.held for source in sources if source.held is not None]
    if held and len(held) < len(sources):
        raise DataError(
            f"{sources[0].name}: some of the paths have a validation side of their own and others do not; prepare all "
            "of them alike, or give weights (data.weights)"
        )
    return replace(
        sources[0],
        store=joined([source.store for source in sources]),
        held=joined(held) if held else None,
        notes=tuple(note for source in sources for note in source.notes),
    )


def _refuse_twice(paths: Sequence[Path], data: DataConfig) -> None:
    """Refuse a file or prepared folder that is named twice, over all paths."""
    prepared = [path.resolve() for path in paths if is_prepared(path)]
    for path in paths:
        if prepared.count(path.resolve()) > 1:
            raise DataError(f"{path}: the data names this folder twice; name it once")
    raw = [path for path in paths if not is_prepared(path)]
    if raw:
        list_files(raw, format=data.format)


def _open(paths: list[Path], data: DataConfig, loaded: LoadedModel, special: Special) -> list[Source]:
    """Return the sources of one prepared folder, or the one source of raw paths."""
    if is_prepared(paths[0]):
        return _prepared_sources(open_prepared(paths[0]), data, loaded, special)
    collected = MemoryStore(special.eos, special.ends)
    found: list[Found] = []
    kinds: set[str] = set()
    documents = read_documents(paths, format=data.format, fields=fields_of(data), report=found.append)
    for group in token_groups(_noting(documents, kinds), loaded, special):
        for document in group:
            collected.add(document)
    name = ", ".join(map(str, paths))
    return [Source(name=name, kind=kinds.pop(), store=collected.finish(), notes=tuple(listed(found)))]


def fields_of(data: DataConfig) -> Fields:
    """Return how a run's records are read."""
    return Fields(text=data.text_field, records=data.records)


def _noting(documents: Iterable[Document], kinds: set[str]) -> Iterator[Document]:
    for document in documents:
        kinds.add(document.kind)
        yield document


def _prepared_sources(prepared: Prepared, data: DataConfig, loaded: LoadedModel, special: Special) -> list[Source]:
    """Return the sources of a prepared folder, after the checks that it belongs to this model and this run."""
    manifest, folder = prepared.manifest, prepared.folder
    check_tokenizer(prepared, loaded, special)
    split = manifest["validation"]
    if split["fraction"]:
        if data.validation_paths:
            raise ConfigError(
                f"train.data.validation_paths: {folder} was prepared with a validation side of its own; set "
                "validation_paths: [] or prepare it without --validation-fraction"
            )
        asked = (data.validation_fraction, data.split_seed)
        if data.validation_fraction and asked != (split["fraction"], split["seed"]):
            raise ConfigError(
                f"train.data.validation_fraction: {asked[0]} (split_seed {asked[1]}), but {folder} was prepared with "
                f"{split['fraction']} (seed {split['seed']}); set 0 to use its split, or prepare it again"
            )
    return [
        Source(
            name=f"{folder}/{source.name}" if len(prepared.sources) > 1 else str(folder),
            kind=source.kind,
            store=source.train,
            held=source.validation if split["fraction"] else None,
            weight=source.weight,
            notes=(f"{folder}: prepared from {source.name} ({source.kind})",),
        )
        for source in prepared.sources
    ]


def check_tokenizer(prepared: Prepared, loaded: LoadedModel, special: Special) -> None:
    """Refuse a prepared folder whose ids mean something else to this model.

    Raises:
        DataError: another tokenizer or EOS, or a document that holds the mask id.
    """
    manifest, folder = prepared.manifest, prepared.folder
    made = manifest["tokenizer"]
    if made["sha256"] != tokenizer_fingerprint(loaded.tokenizer, special.mask):
        raise DataError(
            f"{folder}: was prepared with another tokenizer (that of {made['model']}) than {loaded.path} has; "
            "prepare the data again with this model"
        )
    if made["eos_id"] != special.eos:
        raise DataError(
            f"{folder}: was prepared with EOS {made['eos_id']}, {loaded.path} has {special.eos}; prepare it again"
        )
    # Ids made for a model without this mask token were not checked for it.
    if special.mask is None or special.mask == made["mask_id"]:
        return
    for source, entry in zip(prepared.sources, manifest["sources"], strict=True):
        for side, store in (("train", source.train), ("validation", source.validation)):
            found = store.first_with(special.mask) if special.mask <= entry[side]["largest_id"] else None
            if found is not None:
                raise DataError(
                    f"{folder}: {store.where(found)} holds id {special.mask}, the mask token of {loaded.path}; prepare "
                    "the data again with this model"
                )
