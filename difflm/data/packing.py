"""Token documents -> fixed rows: best-fit-decreasing packing with document ids and per-document positions.

Rules, in one place:
- A document that fits into a row is never cut, and documents never overlap: document ids are contiguous runs,
  positions restart at 0 in each.
- Plain text longer than a row is cut into pieces of exactly one row plus a remainder; each piece is a document
  of its own (nothing carries context from row to row). Only the last piece ends in EOS.
- A prompt with its completion is never cut (an answer without its prompt teaches the wrong thing): one longer
  than a row is dropped and counted, or refused.
- `fill_multiple` extends a prompt + completion document by EOS tokens, supervised, up to a multiple counted from
  the document's start, so that its last block looks like the one that is decoded. What is left of the row is
  padding: document -1, position 0, not trainable, hence neither masked nor supervised.
- The order of rows follows the order of documents (by the first document of each row), so the first rows of a
  data set are an unbiased sample of its lengths; the row number is the index in that order.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from difflm.data.tokens import TokenDocument
from difflm.errors import ConfigError, DataError
from difflm.types import PADDING, Batch


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
        dropped: prompt + completion documents left out because they are longer than a row.
        dropped_tokens: their tokens.
        first_dropped: "file:line" of the first of them; empty if there is none.
    """

    documents: int
    rows: int
    row_length: int
    tokens: int
    trainable: int
    fill: int
    split: int
    pieces: int
    dropped: int
    dropped_tokens: int
    first_dropped: str

    @property
    def fill_rate(self) -> float:
        """Return the share of row positions that hold a document's token (1 - padding share)."""
        return self.tokens / (self.rows * self.row_length)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedRows:
    """A packed data set in memory, R rows of L tokens (13 bytes a token).

    Attributes:
        token_RL: int32 ids; `pad_id` at padding.
        document_RL: int32 document number inside the row, PADDING (-1) at padding.
        position_RL: int32 position inside the document, 0 at padding.
        trainable_RL: bool, False for prompt and padding.
        counts: see `PackCounts`.
        fingerprint: hash of the rows; equal only for equal data, so a resumed run can tell.
    """

    token_RL: Tensor
    document_RL: Tensor
    position_RL: Tensor
    trainable_RL: Tensor
    counts: PackCounts
    fingerprint: str

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.token_RL.shape[0]

    def batch(self, row_indices: Sequence[int], epochs: Sequence[int] | None = None) -> Batch:
        """Return the rows with these indices, in this order, as a batch on the CPU.

        Args:
            row_indices: indices in [0, len(self)); they become `Batch.row_B`.
            epochs: pass over the data of each row; they become `Batch.epoch_B`. None: all 0.
        """
        row_B = torch.tensor(list(row_indices), dtype=torch.int64)
        return Batch(
            token_BL=self.token_RL[row_B].long(),
            document_BL=self.document_RL[row_B].long(),
            position_BL=self.position_RL[row_B].long(),
            trainable_BL=self.trainable_RL[row_B],
            row_B=row_B,
            epoch_B=torch.zeros_like(row_B) if epochs is None else torch.tensor(list(epochs), dtype=torch.int64),
        )


def pack(
    documents: Sequence[TokenDocument],
    *,
    row_length: int,
    pad_id: int,
    eos_id: int,
    fill_multiple: int | None = None,
    overlong: Literal["drop", "refuse"] = "drop",
) -> PackedRows:
    """Return the documents packed into rows of equal length; see the module's rules.

    Args:
        documents: token documents in order.
        row_length: tokens in a row.
        pad_id: id that stands at padding (never read by the loss; any id of the vocabulary).
        eos_id: id used by `fill_multiple`.
        fill_multiple: tokens; prompt + completion documents are filled with EOS to a multiple of it, which has
            to divide `row_length`. None fills nothing.
        overlong: a prompt + completion document longer than a row is dropped and counted, or refused.

    Raises:
        ConfigError: `row_length` or `fill_multiple` that cannot be used.
        DataError: no document, none that fits, or one that is too long under `overlong="refuse"`.
    """
    if row_length < 1:
        raise ConfigError(f"row_length: {row_length} is not usable; give at least 1 token")
    if fill_multiple is not None and (fill_multiple < 1 or row_length % fill_multiple):
        raise ConfigError(
            f"row_length: {row_length} is not a multiple of {fill_multiple}, to which answers are filled; change one"
        )
    if not documents:
        raise DataError("data: there is no document to pack; give at least one")
    pieces, counts = _pieces(documents, row_length, overlong)
    if not pieces:
        raise DataError(
            f"{counts.first_dropped}: none of the {len(documents)} prompt + completion documents fits into a row; "
            f"raise row_length ({row_length} tokens)"
        )
    fill = [_fill(piece, fill_multiple) for piece in pieces]
    rows = best_fit(
        [len(piece.token) + extra for piece, extra in zip(pieces, fill, strict=True)], row_length=row_length
    )
    return _build(rows, pieces, fill, counts=counts, pad_id=pad_id, eos_id=eos_id)


def best_fit(lengths: Sequence[int], *, row_length: int) -> list[list[int]]:
    """Return rows of item indices by best fit decreasing: longest first, each into the fullest row it fits.

    Deterministic: equal lengths in order of index, equally full rows in order of their last use. Rows are
    ordered by their smallest index, and so are the items of a row. O(n log n) for n items.

    Args:
        lengths: item lengths in tokens, each in [1, row_length].
        row_length: capacity of a row in tokens.
    """
    assert all(0 < length <= row_length for length in lengths), "every item has to fit into a row"
    rows: list[list[int]] = []
    open_rows: dict[int, deque[int]] = {}  # free tokens -> rows with exactly that much room
    rooms: list[int] = []  # the keys of open_rows, sorted
    for item in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        place = bisect_left(rooms, lengths[item])
        if place == len(rooms):
            row, room = len(rows), row_length
            rows.append([])
        else:
            room = rooms[place]
            row = open_rows[room].popleft()
            if not open_rows[room]:
                del open_rows[room], rooms[place]
        rows[row].append(item)
        room -= lengths[item]
        if room and room not in open_rows:
            insort(rooms, room)
        if room:
            open_rows.setdefault(room, deque()).append(row)
    return sorted((sorted(row) for row in rows), key=lambda row: row[0])


def _pieces(
    documents: Sequence[TokenDocument], row_length: int, overlong: Literal["drop", "refuse"]
) -> tuple[list[TokenDocument], PackCounts]:
    """Return the documents with long ones cut or dropped, and the counts known so far."""
    pieces: list[TokenDocument] = []
    split = 0
    dropped: list[TokenDocument] = []
    for document in documents:
        length = len(document.token)
        if length <= row_length:
            pieces.append(document)
        elif not document.is_answer:
            split += 1
            pieces += [
                TokenDocument(
                    token=document.token[start : start + row_length],
                    num_prompt=min(max(document.num_prompt - start, 0), row_length),
                    where=document.where,
                )
                for start in range(0, length, row_length)
            ]
        elif overlong == "refuse":
            raise DataError(
                f"{document.where}: prompt and completion have {length} tokens, more than a row; "
                f"raise row_length ({row_length}) or shorten the document"
            )
        else:
            dropped.append(document)
    counts = PackCounts(
        documents=len(documents),
        rows=0,
        row_length=row_length,
        tokens=0,
        trainable=0,
        fill=0,
        split=split,
        pieces=len(pieces),
        dropped=len(dropped),
        dropped_tokens=sum(len(document.token) for document in dropped),
        first_dropped=dropped[0].where if dropped else "",
    )
    return pieces, counts


def _fill(piece: TokenDocument, multiple: int | None) -> int:
    """Return how many EOS tokens bring an answer to a multiple counted from its start (0 for plain text)."""
    return -len(piece.token) % multiple if multiple and piece.is_answer else 0


def _build(
    rows: list[list[int]],
    pieces: list[TokenDocument],
    fill: list[int],
    *,
    counts: PackCounts,
    pad_id: int,
    eos_id: int,
) -> PackedRows:
    """Lay the pieces out as tensors; `array` keeps this at a few bytes a token without NumPy."""
    token, document, position, trainable = array("i"), array("i"), array("i"), array("b")
    for row in rows:
        room = counts.row_length
        for number, index in enumerate(row):
            piece = pieces[index]
            length = len(piece.token) + fill[index]
            token.extend(piece.token)
            token.extend([eos_id] * fill[index])
            document.extend([number] * length)
            position.extend(range(length))
            trainable.extend([0] * piece.num_prompt + [1] * (length - piece.num_prompt))
            room -= length
        token.extend([pad_id] * room)
        document.extend([PADDING] * room)
        position.extend([0] * room)
        trainable.extend([0] * room)
    digest = hashlib.sha256()
    for column in (token, document, position, trainable):
        digest.update(column.tobytes())
    shape = (len(rows), counts.row_length)
    document_RL = _tensor(document, torch.int32).view(shape)
    trainable_RL = _tensor(trainable, torch.int8).bool().view(shape)
    return PackedRows(
        token_RL=_tensor(token, torch.int32).view(shape),
        document_RL=document_RL,
        position_RL=_tensor(position, torch.int32).view(shape),
        trainable_RL=trainable_RL,
        counts=replace(
            counts,
            rows=len(rows),
            tokens=int((document_RL != PADDING).sum()),
            trainable=int(trainable_RL.sum()),
            fill=sum(fill),
        ),
        fingerprint=digest.hexdigest(),
    )


def _tensor(column: array[int], dtype: torch.dtype) -> Tensor:
    # frombuffer shares memory with the array, which dies with this call: clone.
    return torch.frombuffer(column, dtype=dtype).clone()
