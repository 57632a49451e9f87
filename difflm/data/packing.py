"""Token documents -> fixed rows, with document ids and per-document positions; rows are laid out when asked for.

Rules, in one place:
- A document that fits into a row is never cut, and documents never overlap: document ids are contiguous runs,
  positions restart at 0 in each.
- Plain text longer than a row is cut into pieces of exactly one row plus a remainder, or left out and counted
  (`long_text`); each piece is a document of its own (nothing carries context from row to row). Only the last piece
  ends in EOS.
- A prompt with its completion is never cut into several (an answer without its prompt teaches the wrong thing): one
  longer than a row is dropped and counted, or refused, or loses its end (`overlong`). What lost its end has no EOS and
  no fill; where nothing learnt is left, it is dropped and counted. The same goes for rows of ids with labels.
- The two answers of a preference pair stand in one row, the chosen one first; a pair that does not fit is dropped
  and counted, or refused, and never cut: what is preferred is the whole answer.
- `fill_multiple` extends a prompt + completion document by EOS tokens, supervised, up to a multiple counted from
  the document's start, so that its last block looks like the one that is decoded. What is left of the row is
  padding: document -1, position 0, not trainable, hence neither masked nor supervised.
- "best_fit" takes the longest piece first and puts each into the fullest row that has room; "greedy" takes pieces
  in order and begins a new row whenever the next one does not fit into the current row (next fit).
- The order of rows follows the order of documents (by the first piece of each row), so the first rows of a
  data set are an unbiased sample of its lengths; the row number is the index in that order.
- `random_length`: this share of the rows has a room drawn uniformly from 1 to `row_length` (never less than the
  first piece it takes), the rest of the row is padding. A long text is cut at the drawn room.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from difflm.data.fitting import Capacity, FillMeter, best_fit_rows, next_fit_rows, row_table
from difflm.data.rows import Array, Overlong, PackCounts, PackedRows, Packing, PackOptions
from difflm.data.store import ANSWER, BITS, FILLED, MemoryStore, TokenStore
from difflm.data.tokens import TokenDocument
from difflm.errors import DataError


def pack(
    documents: Sequence[TokenDocument],
    *,
    row_length: int,
    pad_id: int,
    eos_id: int,
    fill_multiple: int | None = None,
    overlong: Overlong = "drop",
    packing: Packing = "best_fit",
    random_length: float = 0.0,
    long_text: Literal["split", "drop"] = "split",
    seed: int = 0,
) -> PackedRows:
    """Return documents packed into rows of equal length; see the module's rules, and `PackOptions` for the arguments.

    Raises:
        ConfigError: `row_length` or `fill_multiple` that cannot be used.
        DataError: no document, none that fits, or one that is too long under `overlong="refuse"`.
    """
    options = PackOptions(
        row_length=row_length,
        pad_id=pad_id,
        eos_id=eos_id,
        fill_multiple=fill_multiple,
        overlong=overlong,
        packing=packing,
        random_length=random_length,
        long_text=long_text,
        seed=seed,
    )
    collected = MemoryStore(eos_id)
    for document in documents:
        collected.add(document)
    return pack_store(collected.finish(), options)


def pack_store(store: TokenStore, options: PackOptions, chosen: Array | None = None) -> PackedRows:
    """Return the documents of a store packed into rows; see the module's rules.

    Args:
        store: the documents.
        options: how.
        chosen: numbers of the documents to pack, ascending; None packs all.

    Raises:
        DataError: no document, none that fits, or one that is too long under `overlong="refuse"`.
    """
    given = _given(store, options, np.arange(len(store), dtype=np.int64) if chosen is None else chosen)
    rooms = _Rooms(options)
    pieces = _cut(given.length, given.dropped, rooms)
    added = _fill(pieces.length, given.is_filled[pieces.document], options.fill_multiple)
    units = _units(pieces.length + added, paired=store.paired)
    order, row_start = row_table(_assign(pieces, units, rooms))
    document, start = given.index[pieces.document][order], pieces.start[order]
    length, fill = pieces.length[order], added[order]
    best, greedy = _rows_of_both(units, options.row_length)
    split = int((given.length > options.row_length).sum() - given.dropped.sum())
    counts = PackCounts(
        documents=len(given.index),
        rows=len(row_start) - 1,
        row_length=options.row_length,
        tokens=int(length.sum() + fill.sum()),
        trainable=_trainable(store, document, start, length) + int(fill.sum()),
        cut=given.cut,
        untrainable=given.untrainable,
        fill=int(fill.sum()),
        split=split,
        pieces=len(document),
        dropped=int(given.dropped.sum()),
        dropped_text=int((given.dropped & ~given.is_answer).sum()),
        dropped_tokens=int(given.length[given.dropped].sum()) + given.cut_tokens,
        first_dropped=given.first_dropped,
        packing=options.packing,
        rows_best_fit=best,
        rows_greedy=greedy,
    )
    return PackedRows(
        store=store,
        row_start=row_start,
        document=document,
        start=start,
        length=length,
        fill=fill,
        options=options,
        counts=counts,
        fingerprint=_fingerprint(store, options, row_start, document, start, length, fill),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """The documents to pack: their numbers in the store, lengths and flags, which are left out, the first of those.

    Of answers that lost their end: how many, their lost tokens, and how many were left out for it.
    """

    index: Array
    length: Array
    is_answer: NDArray[np.bool_]
    is_filled: NDArray[np.bool_]
    dropped: NDArray[np.bool_]
    first_dropped: str
    cut: int
    cut_tokens: int
    untrainable: int


def _given(store: TokenStore, options: PackOptions, index: Array) -> _Given:
    """Return the documents with those that are too long marked, or refuse them."""
    if not len(index):
        raise DataError("data: there is no document to pack; give at least one")
    length = store.column("length").astype(np.int64)[index]
    flags = store.column("flags")[index]
    is_answer, is_filled = (flags & ANSWER) != 0, (flags & FILLED) != 0
    size = length
    if store.paired:
        both = _units(length + _fill(length, is_filled, options.fill_multiple), paired=True)
        size = np.repeat(both, 2)
    over = size > options.row_length
    if options.overlong == "refuse" and (over & is_answer).any():
        refused = int(np.argmax(over & is_answer))
        what = "a pair's two answers, each with its prompt," if store.paired else "prompt and completion"
        raise DataError(
            f"{store.where(int(index[refused]))}: {what} have {size[refused]} tokens, more than a "
            f"row; raise row_length ({options.row_length}) or shorten the document"
        )
    cut = over & is_answer & (options.overlong == "cut" and not store.paired)
    teaches = _teaches(store, index, cut, options.row_length)
    kept = cut & teaches
    dropped = over & np.where(is_answer, ~kept, options.long_text == "drop")
    cut_tokens = int((length - options.row_length)[kept].sum())
    length = np.where(kept, options.row_length, length)  # which is a multiple of the fill, so none is added
    first_dropped = store.where(int(index[np.argmax(dropped)])) if dropped.any() else ""
    if dropped.all():
        kind = f"{len(index) // 2} preference pairs" if store.paired else f"{len(index)} {_kinds(is_answer)} documents"
        raise DataError(
            f"{first_dropped}: none of the {kind} fits into a row; raise row_length ({options.row_length} tokens)"
        )
    return _Given(
        index=index,
        length=length,
        is_answer=is_answer,
        is_filled=is_filled,
        dropped=dropped,
        first_dropped=first_dropped,
        cut=int(kept.sum()),
        cut_tokens=cut_tokens,
        untrainable=int((cut & ~teaches).sum()),
    )


def _teaches(store: TokenStore, index: Array, cut: NDArray[np.bool_], row_length: int) -> NDArray[np.bool_]:
    """Return which documents have a learnt token among their first `row_length`; asked of those that are cut."""
    found = np.ones(len(index), dtype=np.bool_)
    for number in np.flatnonzero(cut):
        found[number] = store.read(int(index[number]), 0, row_length)[1].any()
    return found


def _kinds(is_answer: NDArray[np.bool_]) -> str:
    if is_answer.all():
        return "prompt + completion"
    return "plain text" if not is_answer.any() else "text and prompt + completion"


class _Rooms:
    """The room of each row as it is opened, a pure function of the seed and of how many were opened before."""

    def __init__(self, options: PackOptions) -> None:
        self.options = options
        self._generator = np.random.Generator(np.random.PCG64(options.seed))

    def next(self) -> int:
        """Return the room of the next row, tokens."""
        share, length = self.options.random_length, self.options.row_length
        if share and self._generator.random() < share:
            return 1 + int(self._generator.random() * length)
        return length

    @property
    def capacity(self) -> Capacity | None:
        """Return `next`, or None where every row has full room."""
        return self.next if self.options.random_length else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pieces:
    """Documents after cutting: number of the document, first token, tokens, and whether the row is already full."""

    document: Array
    start: Array
    length: Array
    closed: NDArray[np.bool_]


def _cut(lengths: Array, dropped: NDArray[np.bool_], rooms: _Rooms) -> _Pieces:
    """Return the documents with long ones cut, dropped ones left out."""
    row_length = rooms.options.row_length
    if not rooms.options.random_length:
        count = np.where(dropped, 0, -(-lengths // row_length))
        document = np.repeat(np.arange(len(lengths), dtype=np.int64), count)
        start = (np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)) * row_length
        length = np.minimum(lengths[document] - start, row_length)
        return _Pieces(document=document, start=start, length=length, closed=np.zeros(len(document), dtype=np.bool_))
    found: list[tuple[int, int, int, bool]] = []
    for number, length in enumerate(lengths.tolist()):
        start = 0
        while not dropped[number] and length > row_length and start < length:
            room = rooms.next()
            if length - start <= room:
                break
            found.append((number, start, room, True))
            start += room
        if not dropped[number]:
            found.append((number, start, length - start, False))
    columns = np.array(found, dtype=np.int64).reshape(-1, 4)
    return _Pieces(
        document=columns[:, 0], start=columns[:, 1], length=columns[:, 2], closed=columns[:, 3].astype(np.bool_)
    )


def _fill(length: Array, is_filled: NDArray[np.bool_], multiple: int | None) -> Array:
    """Return how many EOS tokens bring an answer to a multiple counted from its start (0 for plain text)."""
    return np.where(is_filled, -length % multiple, 0) if multiple else np.zeros_like(length)


def _units(length: Array, *, paired: bool) -> Array:
    """Return the tokens of what shares a row whatever happens: a document, or the two answers of a pair."""
    return length.reshape(-1, 2).sum(axis=1) if paired else length


def _assign(pieces: _Pieces, units: Array, rooms: _Rooms) -> Array:
    """Return the row of each piece; pieces that were cut at the room of their row have one to themselves."""
    row_length = rooms.options.row_length
    fit = best_fit_rows if rooms.options.packing == "best_fit" else next_fit_rows
    if len(units) < len(pieces.length):  # answers of pairs are never cut
        rows = fit(units.tolist(), row_length=row_length, capacity=rooms.capacity)
        return np.repeat(np.array(rows, dtype=np.int64), 2)
    is_open = ~pieces.closed
    row_of = np.zeros(len(pieces.length), dtype=np.int64)
    row_of[is_open] = fit(units[is_open].tolist(), row_length=row_length, capacity=rooms.capacity)
    row_of[pieces.closed] = len(pieces.length) + np.arange(int(pieces.closed.sum()))
    return row_of


def _rows_of_both(lengths: Array, row_length: int) -> tuple[int, int]:
    meter = FillMeter(row_length)
    for length in lengths.tolist():
        meter.add(length)
    return meter.best_fit_rows(), meter.greedy_rows


def _trainable(store: TokenStore, document: Array, start: Array, length: Array) -> int:
    """Return the tokens of all pieces that are learnt; of an answer that kept its end the record knows."""
    is_answer = (store.column("flags")[document] & ANSWER) != 0
    is_answer &= length == store.column("length")[document]
    bits = (store.column("flags")[document] & BITS) != 0
    learnt = np.where(
        is_answer,
        store.column("learnt")[document],
        length - np.clip(store.column("prompt")[document] - start, 0, length),
    )
    for number in np.flatnonzero(bits & ~is_answer):
        learnt[number] = store.read(int(document[number]), int(start[number]), int(length[number]))[1].sum()
    return int(learnt.sum())


def _fingerprint(store: TokenStore, options: PackOptions, row_start: Array, document: Array, *columns: Array) -> str:
    """Return a hash of the rows: of the ids of each piece's document, and of the plan."""
    digest = hashlib.sha256(f"{options.row_length}:{options.pad_id}:{options.eos_id}".encode("ascii"))
    digest.update(store.column("digest")[document].tobytes())
    for column in (row_start, *columns):
        digest.update(column.astype("<i8").tobytes())
    return digest.hexdigest()
