"""Training and validation documents, told apart by a hash of what they say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from difflm.data.documents import Document
from difflm.errors import DataError


def split_validation(
    documents: Iterable[Document], *, fraction: float, seed: int
) -> tuple[list[Document], list[Document]]:
    """Return (training documents, validation documents), split by a hash of each document's content.

    The side depends on the content and the seed alone, not on order or neighbours, so identical documents
    always land on the same side. Should one side come out empty, the one document nearest to the boundary
    moves there (with all its copies).

    Args:
        documents: what to split; order is kept on both sides.
        fraction: expected share of different documents that goes to validation, in [0, 1); 0 means none.
        seed: another seed is another split.

    Raises:
        DataError: `fraction` out of range, or fewer than two different documents to split.
    """
    documents = list(documents)
    split = Split(fraction=fraction, seed=seed)
    if fraction == 0.0:
        return documents, []
    ranks = [split.see(document.content, document.where) for document in documents]
    boundary = split.boundary()
    training = [document for document, rank in zip(documents, ranks, strict=True) if rank >= boundary]
    validation = [document for document, rank in zip(documents, ranks, strict=True) if rank < boundary]
    return training, validation


class Split:
    """The same split for documents that pass one by one: first `see` all, then ask for the `boundary`.

    Args:
        fraction: see `split_validation`.
        seed: see `split_validation`.

    Raises:
        DataError: `fraction` out of range.
    """

    def __init__(self, *, fraction: float, seed: int) -> None:
        if not 0.0 <= fraction < 1.0:
            raise DataError(f"validation fraction: {fraction} is out of range; use a share of at least 0 and below 1")
        self.fraction = fraction
        self.seed = seed
        self._lowest, self._highest = 2**64, -1
        self._first = ""

    def rank(self, content: bytes) -> int:
        """Return the place in [0, 2**64) of a document with this content hash, a pure function of it and the seed."""
        digest = hashlib.blake2b(f"{self.seed}:{content.hex()}".encode("ascii"), digest_size=8).digest()
        return int.from_bytes(digest, "big")

    def see(self, content: bytes, where: str = "") -> int:
        """Take in a document's content hash and return its rank; `where` names it in an error."""
        rank = self.rank(content)
        if self._highest < 0:
            self._first = where
        self._lowest, self._highest = min(self._lowest, rank), max(self._highest, rank)
        return rank

    def boundary(self) -> int:
        """Return the rank below which a document validates; 0 for a fraction of 0.

        Raises:
            DataError: fewer than two different documents were seen.
        """
        if self.fraction == 0.0:
            return 0
        if self._lowest >= self._highest:
            different = 0 if self._highest < 0 else 1
            raise DataError(
                f"{self._first or 'data'}: {different} different document(s) cannot be split into training and "
                "validation; name a validation file, set the validation fraction to 0, or cut the text into several "
                "documents"
            )
        # At least the lowest-ranked document validates, and at least the highest-ranked one trains.
        return min(max(int(self.fraction * 2**64), self._lowest + 1), self._highest)


def check_disjoint(training: Iterable[Document], validation: Iterable[Document]) -> None:
    """Refuse validation documents that also occur, word for word, in the training documents.

    Raises:
        DataError: names the first shared document on both sides.
    """
    trained = {document.content: document.where for document in training}
    for document in validation:
        if document.content in trained:
            raise DataError(overlap(document.where, trained[document.content]))


def overlap(validation: str, training: str) -> str:
    """Return the message about a document that stands on both sides."""
    return (
        f"{validation}: this validation document is also a training document ({training}); "
        "remove it from one of the two"
    )
