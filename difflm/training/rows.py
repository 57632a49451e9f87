"""Training and validation rows of a run, from its configuration: split, packed, mixed; and what to say about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from difflm.checkpoints.loading import LoadedModel
from difflm.data.mixture import mix
from difflm.data.packing import pack_store
from difflm.data.rows import Array, PackedRows, PackOptions
from difflm.data.splitting import Split, overlap
from difflm.data.store import BITS, TokenStore
from difflm.errors import DataError
from difflm.training.config import PreferenceConfig, TrainConfig
from difflm.training.opening import Source, open_sources

Part = tuple[TokenStore, Array]
"""Some documents of a store."""
PAIR_OBJECTIVES: tuple[type, ...] = (PreferenceConfig,)
"""Configurations of objectives that learn preference pairs; the others learn documents of their own."""


def load_rows(config: TrainConfig, loaded: LoadedModel) -> tuple[PackedRows, PackedRows | None]:
    """Return (training rows, validation rows or None); the two share no document.

    Raises:
        ConfigError: a checkpoint without tokenizer or EOS.
        DataError: files that cannot be used.
    """
    data = config.data
    sources = open_sources(data.paths, data.weights, data, loaded)
    train, held = _split(sources, fraction=data.validation_fraction, seed=data.split_seed)
    if data.validation_paths:
        held = [(source.store, _all(source.store)) for source in open_sources(data.validation_paths, (), data, loaded)]
    for store, _ in (*train, *held):
        _check_pairs(config, store)
    if data.validation_paths or len(sources) > 1:
        _check_disjoint(train, held)
    options = pack_options(config, loaded)
    for source, (_, index) in zip(sources, train, strict=True):
        if not len(index):
            raise DataError(
                f"{source.name}: every document of this source went to validation; lower validation_fraction, or give "
                "the source more documents"
            )
    packed = [pack_store(store, options, index) for store, index in train]
    rows = packed[0]
    if len(packed) > 1:
        rows = mix(packed, [source.name for source in sources], [source.weight or 0.0 for source in sources])
    # Validation has rows of full room: its figures should not depend on that option.
    full = replace(options, random_length=0.0)
    validation = [pack_store(store, full, index) for store, index in held if len(index)]
    rows = replace(rows, notes=tuple(note for source in sources for note in source.notes))
    if not validation:
        return rows, None
    return rows, validation[0] if len(validation) == 1 else mix(validation, [""] * len(validation), ())


def _check_pairs(config: TrainConfig, store: TokenStore) -> None:
    """Refuse pairs for an objective that learns answers, and answers for one that learns pairs."""
    learns_pairs = isinstance(config.objective, PAIR_OBJECTIVES)
    if not len(store) or store.paired == learns_pairs:
        return
    kind, held, other = config.objective.kind, "preference pairs", "documents with one answer"
    if learns_pairs:
        held, other = other, held
    raise DataError(
        f"{store.where(0)}: {held}, but objective {kind} learns {other}; give other data or another objective"
    )


def pack_options(config: TrainConfig, loaded: LoadedModel) -> PackOptions:
    """Return how a run's rows are made."""
    eos, pad = loaded.config.eos_token_ids[0], loaded.config.pad_token_id
    return PackOptions(
        row_length=config.data.row_length,
        pad_id=eos if pad is None else pad,
        eos_id=eos,
        fill_multiple=config.fill_multiple,
        packing=config.data.packing,
        random_length=config.data.random_length,
        long_text=config.data.long_text,
        overlong=config.data.overlong,
        seed=config.data.split_seed,
    )


def describe_rows(rows: PackedRows) -> list[str]:
    """Return what there is to say about a run's data: files, documents, rows, how full they are, what is left out."""
    counts = rows.counts
    other = "greedy" if counts.packing == "best_fit" else "best_fit"
    lines = [f"data: {note}" for note in rows.notes]
    per, name = (2, "preference pairs") if rows.store.paired else (1, "documents")
    filled = f", {counts.fill} of them EOS fill" if counts.fill else ""
    untrainable = f"{counts.untrainable} would learn nothing; " if counts.untrainable else ""
    lines.append(
        f"data: {counts.documents // per} {name}, {counts.tokens} tokens ({counts.trainable} trainable{filled}) in "
        f"{counts.rows} rows of {counts.row_length}, fill {counts.fill_rate:.1%} "
        f"({counts.packing}; {other} {counts.fill_rate_of(other):.1%})"
        + (f", {counts.split} split" if counts.split else "")
        + (f", {counts.cut} cut" if counts.cut else "")
        + (f", {counts.dropped // per} dropped ({untrainable}first: {counts.first_dropped})" if counts.dropped else "")
    )
    exposed = int(((rows.store.column("flags")[rows.document] & BITS) != 0).sum())
    if exposed:
        lines.append(
            f"data: {exposed} rows of ids have given tokens behind learnt ones, which see them where they share a "
            "block; give each answer a row that ends with it"
        )
    total = sum(source.weight or 0.0 for source in rows.sources)
    if total:
        shares = (
            f"{(source.weight or 0.0) / total:.1%} {source.name} ({source.counts.rows} rows)" for source in rows.sources
        )
        lines.append(f"data: mixture of {', '.join(shares)}")
    return lines


def _all(store: TokenStore) -> Array:
    return np.arange(len(store), dtype=np.int64)


def _split(sources: Sequence[Source], *, fraction: float, seed: int) -> tuple[list[Part], list[Part]]:
    """Return the training and the validation documents of each source."""
    split = Split(fraction=fraction, seed=seed)
    open_stores = [source.store for source in sources if source.held is None]
    ranks: dict[int, np.ndarray] = {}
    if fraction:
        for store in open_stores:
            seen = (split.see(content, store.where(number)) for number, content in enumerate(_contents(store)))
            ranks[id(store)] = np.fromiter(seen, dtype=np.uint64, count=len(store))
    boundary = split.boundary() if open_stores else 0
    train: list[Part] = []
    held: list[Part] = []
    for source in sources:
        if source.held is not None:
            train.append((source.store, _all(source.store)))
            held.append((source.held, _all(source.held)))
            continue
        below = ranks[id(source.store)] < boundary if fraction else np.zeros(len(source.store), dtype=np.bool_)
        train.append((source.store, np.flatnonzero(~below)))
        held.append((source.store, np.flatnonzero(below)))
    return train, held


def _contents(store: TokenStore) -> Iterator[bytes]:
    for shard in store.shards:
        for content in shard.document["content"]:
            yield content.tobytes()


def _check_disjoint(train: Sequence[Part], held: Sequence[Part]) -> None:
    """Refuse validation documents that also occur in the training documents."""
    for held_store, held_index in held:
        validation = held_store.column("content")[held_index]
        places = {content.tobytes(): int(number) for content, number in zip(validation, held_index, strict=True)}
        heads = np.ascontiguousarray(validation[:, :8]).view(np.uint64).ravel()
        for store, index in train:
            content = store.column("content")[index]
            # Few agree in the first eight bytes; those are compared whole.
            near = np.isin(np.ascontiguousarray(content[:, :8]).view(np.uint64).ravel(), heads)
            for number in np.flatnonzero(near).tolist():
                twin = places.get(content[number].tobytes())
                if twin is not None:
                    raise DataError(overlap(held_store.where(twin), store.where(int(index[number]))))
