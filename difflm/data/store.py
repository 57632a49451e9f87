"""Token ids of many documents, in memory or memory-mapped: flat ids, and one fixed-size record a document.

A store is a sequence of shards. In memory there is one; a prepared folder has one for each pair of files. Whoever
reads a store cannot tell which it is.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difflm.data.tokens import TokenDocument

DOCUMENT = np.dtype(
    [
        ("start", "<i8"),
        ("length", "<i4"),
        ("prompt", "<i4"),
        ("learnt", "<i4"),
        ("flags", "<i4"),
        ("file", "<i4"),
        ("record", "<i8"),
        ("bits", "<i8"),
        ("content", "u1", (32,)),
        ("digest", "u1", (16,)),
    ]
)
"""One document: first token and number of tokens, leading tokens that are given, tokens that are learnt, flags, file
and record it came from, where its trainable bits begin, hash of what it says (it decides the validation split), hash
of its ids."""
ANSWER, FILLED, BITS, CHOSEN, REJECTED = 1, 2, 4, 8, 16
"""Flags: an answer to a prompt; filled with EOS up to a block; which tokens are learnt stands in bits, not in `prompt`;
the sides of a preference pair, which follow one another."""
_SCAN = 1 << 22
_RECORD = struct.Struct("<qiiiiiqq32s16s")
assert _RECORD.size == DOCUMENT.itemsize, "the two descriptions of a record differ"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Shard:
    """A stretch of documents.

    Attributes:
        token: ids of all documents, one after another; uint16, int32 or uint32.
        document: records of type `DOCUMENT`; `start` counts from the shard's first token.
        bits: trainable bits of the documents that have some, eight a byte.
        files: names of the source files that `file` counts.
    """

    token: NDArray[Any]
    document: NDArray[Any]
    bits: NDArray[np.uint8]
    files: tuple[str, ...] = ()


class TokenStore:
    """Documents as token ids, numbered through all shards.

    Args:
        shards: in order.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = tuple(shards)
        self._ends = np.cumsum([len(shard.document) for shard in self.shards], dtype=np.int64)

    def __len__(self) -> int:
        """Return the number of documents."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def column(self, name: str) -> NDArray[Any]:
        """Return one field of every document's record."""
        parts = [shard.document[name] for shard in self.shards]
        return np.concatenate(parts) if parts else np.empty(0, dtype=DOCUMENT[name])

    @property
    def paired(self) -> bool:
        """Return whether the documents are preference pairs, chosen and rejected in turn."""
        first = next((shard.document["flags"][0] for shard in self.shards if len(shard.document)), 0)
        return bool(first & CHOSEN)

    def where(self, index: int) -> str:
        """Return "file:line" of a document, for messages."""
        shard, record = self._find(index)
        file, number = int(record["file"]), int(record["record"])
        name = shard.files[file] if file >= 0 else ""
        return f"{name}:{number}" if number >= 0 else name

    def first_with(self, token_id: int) -> int | None:
        """Return the first document that holds an id, reading every shard until then; None where there is none."""
        base = 0
        for shard in self.shards:
            for start in range(0, len(shard.token), _SCAN):
                found = np.flatnonzero(shard.token[start : start + _SCAN] == token_id)
                if len(found):
                    return base + int(np.searchsorted(shard.document["start"], start + int(found[0]), side="right")) - 1
            base += len(shard.document)
        return None

    def read(self, index: int, start: int, length: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return (ids, which of them are learnt) of `length` tokens of a document from its token `start` on."""
        shard, record = self._find(index)
        begin = int(record["start"]) + start
        if record["flags"] & BITS:
            whole = shard.bits[int(record["bits"]) :][: -(-int(record["length"]) // 8)]
            learnt = np.unpackbits(whole)[start : start + length].astype(np.bool_)
        else:
            learnt = np.arange(start, start + length) >= record["prompt"]
        return shard.token[begin : begin + length], learnt

    def _find(self, index: int) -> tuple[Shard, Any]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = self.shards[number]
        return shard, shard.document[index - int(self._ends[number])]  # negative: counted from the shard's end


def joined(stores: Sequence[TokenStore]) -> TokenStore:
    """Return the documents of several stores as one store, nothing copied."""
    return TokenStore([shard for store in stores for shard in store.shards])


class RecordMaker:
    """Turns token documents into records; knows which files there are and where the next document begins.

    Args:
        eos_id: only an answer that ends in it (or in one of `ends`) is filled with more of it.
        ends: further ids that end an answer.
    """

    def __init__(self, eos_id: int, ends: Sequence[int] = ()) -> None:
        self.ends = frozenset((eos_id, *ends))
        self.files: dict[str, int] = {}
        self.restart()

    def restart(self) -> None:
        """Begin a new shard: tokens and bits are counted from 0."""
        self.num_tokens = 0
        self._num_bits = 0

    def make(self, document: TokenDocument) -> tuple[array[int], bytes, bytes]:
        """Return (ids as int32, record, trainable bits) of the next document."""
        token = array("i", document.token)
        bits = (
            b"" if document.trainable is None else np.packbits(np.array(document.trainable, dtype=np.bool_)).tobytes()
        )
        side = 0 if document.side is None else CHOSEN if document.side == "chosen" else REJECTED
        flags = ANSWER * document.is_answer | (BITS if bits else 0) | side
        learnt = len(token) - document.num_prompt if document.trainable is None else sum(document.trainable)
        ends_learnt = learnt > 0 if document.trainable is None else document.trainable[-1]
        if document.is_answer and ends_learnt and token[-1] in self.ends:
            flags |= FILLED
        digest = hashlib.blake2b(token.tobytes(), digest_size=16)
        digest.update(struct.pack("<ii", document.num_prompt, flags))
        digest.update(bits)
        name, number = _place(document.where)
        record = _RECORD.pack(
            self.num_tokens,
            len(token),
            document.num_prompt,
            learnt,
            flags,
            self.files.setdefault(name, len(self.files)),
            number,
            self._num_bits,
            document.content,
            digest.digest(),
        )
        self.num_tokens += len(token)
        self._num_bits += len(bits)
        return token, record, bits


class MemoryStore:
    """Collects token documents in memory: four bytes a token and one record a document.

    Args:
        eos_id, ends: see `RecordMaker`.
    """

    def __init__(self, eos_id: int, ends: Sequence[int] = ()) -> None:
        self._maker = RecordMaker(eos_id, ends)
        self._token: array[int] = array("i")
        self._document, self._bits = bytearray(), bytearray()

    def add(self, document: TokenDocument) -> None:
        """Append a document."""
        token, record, bits = self._maker.make(document)
        self._token.extend(token)
        self._document += record
        self._bits += bits

    def finish(self) -> TokenStore:
        """Return the documents so far as a store."""
        shard = Shard(
            token=np.frombuffer(self._token, dtype=np.int32),
            document=np.frombuffer(self._document, dtype=DOCUMENT),
            bits=np.frombuffer(self._bits, dtype=np.uint8),
            files=tuple(self._maker.files),
        )
        return TokenStore([shard])


def _place(where: str) -> tuple[str, int]:
    """Return (file, number of the record, -1 for none) such that joining them gives `where` again."""
    name, _, number = where.rpartition(":")
    if name and number.isdecimal() and str(int(number)) == number:
        return name, int(number)
    return where, -1
