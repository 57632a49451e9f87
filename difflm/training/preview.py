"""The first packed rows of some files, token by token with the role each has in training: what `--show` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from difflm.checkpoints.loading import LoadedModel, load_without_weights
from difflm.data.formats import Format
from difflm.data.packing import pack_store
from difflm.data.records import Fields, Records
from difflm.data.rows import PackedRows, Packing, PackOptions
from difflm.data.shards import is_prepared, open_prepared
from difflm.data.sources import read_documents
from difflm.data.store import MemoryStore, TokenStore
from difflm.data.tokens import Special, token_groups
from difflm.diffusion.noise import Bernoulli, RowNoise
from difflm.errors import ConfigError
from difflm.training.opening import check_tokenizer, special_ids
from difflm.training.passes import Report
from difflm.types import PADDING

Role = Literal["prompt", "trainable", "eos", "fill", "padding"]
_ROWS_READ_FOR_ONE = 8
"""Rows' worth of tokens that are read for each row shown, so that packing has a choice."""
_MOST_DOCUMENTS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownToken:
    """One position of a row.

    Attributes:
        text: what the token stands for.
        role: given ("prompt"), learnt ("trainable", "eos" at the end, "fill" behind it) or nothing ("padding").
        masked: replaced by the mask token in this draw of the noise.
        document: number of its document in the row; -1 for padding.
    """

    text: str
    role: Role
    masked: bool
    document: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRow:
    """One packed row.

    Attributes:
        source: path it came from.
        number: of the row among those packed.
        tokens: every position.
        documents_read: how many documents the packing had to choose from.
    """

    source: str
    number: int
    tokens: tuple[ShownToken, ...]
    documents_read: int


def preview(
    paths: Sequence[str | Path],
    *,
    model: str | Path,
    rows: int,
    mask_rate: float = 0.5,
    row_length: int = 256,
    block_size: int | None = None,
    packing: Packing = "best_fit",
    format: Format = "auto",
    text_field: str = "text",
    records: Records = "auto",
    seed: int = 0,
    report: Report | None = None,
) -> list[ShownRow]:
    """Return the first rows that the beginning of each path packs into, with masks as training would draw them.

    Args:
        paths: files, folders, patterns or prepared folders.
        model: checkpoint whose tokenizer is used.
        rows: rows to return, shared among the paths.
        mask_rate: noise time t in [0, 1]; each trainable position is masked with this probability.
        row_length: tokens in a row.
        block_size: answers are filled with EOS to a multiple of it; None takes the model's, or fills nothing.
        packing: "best_fit" or "greedy".
        format: of the files, "auto" to conclude it from their first rows.
        text_field: name of the field or column with plain text.
        records: what records hold, "auto" to conclude it from their fields.
        seed: of the noise.
        report: is told what was concluded about each file.

    Raises:
        ConfigError: an argument or a checkpoint that cannot be used.
        DataError: files that cannot be used.
    """
    if not 0.0 <= mask_rate <= 1.0:
        raise ConfigError(f"mask_rate: {mask_rate} is out of range; use 0 to 1")
    if rows < 1:
        raise ConfigError(f"show: {rows} is not usable; give at least 1 row")
    loaded = load_without_weights(model)
    special = special_ids(loaded, field="model")
    options = _options(loaded, special, row_length=row_length, block_size=block_size, packing=packing)
    fields = Fields(text=text_field, records=records)
    shown: list[ShownRow] = []
    for number, path in enumerate(paths):
        wanted = -(-(rows - len(shown)) // (len(paths) - number))
        store, count = _beginning(
            Path(path), loaded, special, wanted * row_length, format=format, fields=fields, report=report
        )
        packed = pack_store(store, options, np.arange(count, dtype=np.int64))
        shown += [
            _shown(packed, row, str(path), loaded, mask_rate=mask_rate, seed=seed)
            for row in range(min(wanted, len(packed)))
        ]
    return shown


def _options(
    loaded: LoadedModel, special: Special, *, row_length: int, block_size: int | None, packing: Packing
) -> PackOptions:
    pad = loaded.config.pad_token_id
    return PackOptions(
        row_length=row_length,
        pad_id=special.eos if pad is None else pad,
        eos_id=special.eos,
        fill_multiple=loaded.config.block_size if block_size is None else block_size,
        packing=packing,
    )


def _beginning(
    path: Path,
    loaded: LoadedModel,
    special: Special,
    tokens: int,
    *,
    format: Format,
    fields: Fields,
    report: Report | None,
) -> tuple[TokenStore, int]:
    """Return (store, documents of it to pack): the first documents with about eight times so many tokens."""
    most = tokens * _ROWS_READ_FOR_ONE
    if is_prepared(path):
        prepared = open_prepared(path, hashes=False)
        check_tokenizer(prepared, loaded, special)
        store = prepared.sources[0].train
        total = np.cumsum(store.column("length"))
        count = min(int(np.searchsorted(total, most)) + 1, _MOST_DOCUMENTS, len(store))
        return store, count + count % 2 if store.paired else count  # no pair is torn
    documents = read_documents(
        path, format=format, fields=fields, report=lambda found: report(f"format: {found}") if report else None
    )
    collected = MemoryStore(special.eos, special.ends)
    read = 0
    for group in token_groups(islice(documents, _MOST_DOCUMENTS), loaded, special):
        for document in group:
            collected.add(document)
            read += len(document.token)
        if read >= most:
            break
    store = collected.finish()
    return store, len(store)


def _shown(packed: PackedRows, row: int, source: str, loaded: LoadedModel, *, mask_rate: float, seed: int) -> ShownRow:
    batch = packed.batch([row])
    token, document, trainable = batch.token_BL[0], batch.document_BL[0], batch.trainable_BL[0]
    masked = _masks(document, trainable, mask_rate=mask_rate, seed=seed, row=row)
    fill = packed.fill_of(row)
    tokens = []
    for place, token_id in enumerate(token.tolist()):
        role: Role = "trainable" if trainable[place] else "prompt"
        if document[place] == PADDING:
            role = "padding"
        elif fill[place]:
            role = "fill"
        elif trainable[place] and token_id in loaded.config.eos_token_ids:
            role = "eos"
        tokens.append(
            ShownToken(
                text=_text(token_id, loaded),
                role=role,
                masked=bool(masked[place]),
                document=int(document[place]),
            )
        )
    return ShownRow(source=source, number=row, tokens=tuple(tokens), documents_read=packed.counts.documents)


def _masks(
    document_L: torch.Tensor, trainable_L: torch.Tensor, *, mask_rate: float, seed: int, row: int
) -> torch.Tensor:
    """Return the masks that Bernoulli noise draws for the row in its first pass, with the time held at `mask_rate`."""
    if mask_rate == 0.0:
        return torch.zeros_like(trainable_L)
    noise = Bernoulli(bandwidth=(mask_rate * (1.0 - 1e-9), mask_rate))
    group_L = torch.where(document_L == PADDING, document_L.max() + 1, document_L)
    return noise.draw(group_L, trainable_L, RowNoise(seed).generator(row, 0)).masked_L


def _text(token_id: int, loaded: LoadedModel) -> str:
    """Return what an id stands for; a part of a character has no text of its own, so its id stands for it."""
    text = loaded.decode([token_id], skip_special_tokens=False)
    return f"<{token_id}>" if "\ufffd" in text or not text else text
