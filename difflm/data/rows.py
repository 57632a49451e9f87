"""Packed rows: a plan over a token store, and what packing did; rows are laid out when a batch asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from difflm.data.store import TokenStore
from difflm.errors import ConfigError
from difflm.types import PADDING, Batch

Packing = Literal["best_fit", "greedy"]
Overlong = Literal["drop", "refuse", "cut"]
Array = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackOptions:
    """How rows are made.

    Attributes:
        row_length: tokens in a row.
        pad_id: id that stands at padding (never read by the loss; any id of the vocabulary).
        eos_id: id used by `fill_multiple`.
        fill_multiple: tokens; prompt + completion documents are filled with EOS to a multiple of it, which has
            to divide `row_length`. None fills nothing.
        packing: "best_fit" or "greedy".
        random_length: share of rows with a drawn room, in [0, 1].
        long_text: plain text longer than a row is cut ("split") or left out ("drop").
        overlong: a prompt + completion document longer than a row is left out ("drop"), refused ("refuse") or loses
            its end ("cut"); pairs are never cut, but dropped.
        seed: of the drawn rooms.
    """

    row_length: int
    pad_id: int
    eos_id: int
    fill_multiple: int | None = None
    packing: Packing = "best_fit"
    random_length: float = 0.0
    long_text: Literal["split", "drop"] = "split"
    overlong: Overlong = "drop"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the lengths."""
        if self.row_length < 1:
            raise ConfigError(f"row_length: {self.row_length} is not usable; give at least 1 token")
        if self.fill_multiple is not None and (self.fill_multiple < 1 or self.row_length % self.fill_multiple):
            raise ConfigError(
                f"row_length: {self.row_length} is not a multiple of {self.fill_multiple}, to which answers are "
                "filled; change one"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackCounts:
    """What became of the documents. Every token given is in exactly one of tokens - fill and dropped_tokens.

    Attributes:
        documents: documents given to `pack`.
        rows: rows made.
        row_length: tokens in a row.
        tokens: tokens in rows, EOS fill included, padding excluded.
        trainable: tokens in rows that are learnt (prompt and padding excluded, EOS and EOS fill included).
        fill: EOS tokens added by `fill_multiple`.
        split: documents that were cut because they are longer than a row.
        pieces: documents as they stand in rows (pieces of a cut document count each).
        cut: answers that lost their end, because they are longer than a row.
        dropped: documents left out because they are longer than a row; of pairs both answers count.
        untrainable: those of them of which cutting would have left nothing that is learnt.
        dropped_text: those of them that are plain text.
        dropped_tokens: their tokens, and those that were cut off.
        first_dropped: "file:line" of the first of them; empty if there is none.
        packing: how the rows were made.
        rows_best_fit: rows that best fit makes of these pieces (at full room).
        rows_greedy: rows that greedy packing makes of them (at full room).
    """

    documents: int
    rows: int
    row_length: int
    tokens: int
    trainable: int
    fill: int
    split: int
    pieces: int
    cut: int
    dropped: int
    untrainable: int
    dropped_text: int
    dropped_tokens: int
    first_dropped: str
    packing: Packing
    rows_best_fit: int
    rows_greedy: int

    @property
    def fill_rate(self) -> float:
        """Return the share of row positions that hold a document's token (1 - padding share)."""
        return self.tokens / (self.rows * self.row_length)

    def fill_rate_of(self, packing: Packing) -> float:
        """Return the fill rate that a packing gives at full room."""
        rows = self.rows_best_fit if packing == "best_fit" else self.rows_greedy
        return self.tokens / (rows * self.row_length)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSource:
    """Where a stretch of rows came from.

    Attributes:
        name: path, as it was given.
        counts: what became of its documents.
        weight: share in a mixture, in proportion to the others; None where every row is drawn once an epoch.
    """

    name: str
    counts: PackCounts
    weight: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedRows:
    """A packed data set: R rows of L tokens as a plan over a token store, P pieces in the order of rows.

    Attributes:
        store: the documents.
        row_start: first piece of each row, and the end; int64 [R + 1].
        document: store's number of each piece's document; int64 [P].
        start: first token of each piece in its document; int64 [P].
        length: tokens of each piece that come from the document; int64 [P].
        fill: EOS tokens behind each piece; int64 [P].
        options: how the rows were made.
        counts: see `PackCounts`.
        fingerprint: hash of the rows; equal only for equal data, so a resumed run can tell.
        sources: stretches of rows with their own share of the draws, in order; empty without a mixture.
        notes: what was concluded about the files, one line each, for the reader of a log.
    """

    store: TokenStore
    row_start: Array
    document: Array
    start: Array
    length: Array
    fill: Array
    options: PackOptions
    counts: PackCounts
    fingerprint: str
    sources: tuple[RowSource, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.row_start) - 1

    def batch(self, row_indices: Sequence[int], epochs: Sequence[int] | None = None) -> Batch:
        """Return the rows with these indices, in this order, as a batch on the CPU.

        Args:
            row_indices: indices in [0, len(self)); they become `Batch.row_B`.
            epochs: pass over the data of each row; they become `Batch.epoch_B`. None: all 0.
        """
        shape = (len(row_indices), self.options.row_length)
        token = np.full(shape, self.options.pad_id, dtype=np.int64)
        document = np.full(shape, PADDING, dtype=np.int64)
        position = np.zeros(shape, dtype=np.int64)
        trainable = np.zeros(shape, dtype=np.bool_)
        for index, row in enumerate(row_indices):
            self._lay_out(int(row), token[index], document[index], position[index], trainable[index])
        row_B = torch.tensor(list(row_indices), dtype=torch.int64)
        return Batch(
            token_BL=torch.from_numpy(token),
            document_BL=torch.from_numpy(document),
            position_BL=torch.from_numpy(position),
            trainable_BL=torch.from_numpy(trainable),
            row_B=row_B,
            epoch_B=torch.zeros_like(row_B) if epochs is None else torch.tensor(list(epochs), dtype=torch.int64),
            paired=self.store.paired,
        )

    def fill_of(self, row: int) -> NDArray[np.bool_]:
        """Return which positions of a row are EOS fill, bool [L]."""
        filled = np.zeros(self.options.row_length, dtype=np.bool_)
        place = 0
        for piece in range(self.row_start[row], self.row_start[row + 1]):
            place += int(self.length[piece])
            filled[place : place + self.fill[piece]] = True
            place += int(self.fill[piece])
        return filled

    def _lay_out(self, row: int, token: Any, document: Any, position: Any, trainable: Any) -> None:
        place = 0
        for number, piece in enumerate(range(self.row_start[row], self.row_start[row + 1])):
            length, fill = int(self.length[piece]), int(self.fill[piece])
            ids, learnt = self.store.read(int(self.document[piece]), int(self.start[piece]), length)
            middle, end = place + length, place + length + fill
            token[place:middle], token[middle:end] = ids, self.options.eos_id
            document[place:end] = number
            position[place:end] = np.arange(length + fill)
            trainable[place:middle], trainable[middle:end] = learnt, True
            place = end
