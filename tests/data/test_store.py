"""Token stores: what is put in comes out, from memory, from files and from several joined."""

from __future__ import annotations

from array import array
from dataclasses import replace

import numpy as np
import pytest

from difflm.data import store as store_module
from difflm.data.store import (
    ANSWER,
    BITS,
    CHOSEN,
    DOCUMENT,
    FILLED,
    REJECTED,
    MemoryStore,
    RecordMaker,
    TokenStore,
    joined,
)
from difflm.data.tokens import TokenDocument

EOS = 1
DOCUMENTS = (
    TokenDocument(token=[5, 6, EOS], content=b"a" * 32, where="f.jsonl:3"),
    TokenDocument(token=[7, 8, 9, EOS], num_prompt=2, is_answer=True, where="g:h.txt"),
    TokenDocument(token=[4, 5], is_answer=True, trainable=[True, False], where="f.jsonl:05"),
    TokenDocument(token=[3] * 11, is_answer=True, trainable=[False] * 9 + [True, False], where=""),
)


def store_of(*documents: TokenDocument) -> TokenStore:
    collected = MemoryStore(EOS)
    for document in documents:
        collected.add(document)
    return collected.finish()


def test_documents_come_out_as_they_went_in() -> None:
    store = store_of(*DOCUMENTS)
    assert len(store) == 4
    for index, document in enumerate(DOCUMENTS):
        ids, learnt = store.read(index, 0, len(document.token))
        assert ids.tolist() == list(document.token)
        expected = document.trainable or [place >= document.num_prompt for place in range(len(document.token))]
        assert learnt.tolist() == list(expected)
        assert store.where(index) == document.where
    ids, learnt = store.read(3, 8, 3)
    assert (ids.tolist(), learnt.tolist()) == ([3, 3, 3], [False, True, False])
    assert store.column("learnt").tolist() == [3, 2, 1, 1]
    assert store.column("flags").tolist() == [0, ANSWER | FILLED, ANSWER | BITS, ANSWER | BITS]
    assert bytes(store.column("content")[0]) == b"a" * 32


def test_sides_of_a_pair_are_told_apart() -> None:
    sides = [replace(DOCUMENTS[1], side="chosen"), replace(DOCUMENTS[1], side="rejected")]
    store = store_of(*sides)
    assert store.column("flags").tolist() == [ANSWER | FILLED | CHOSEN, ANSWER | FILLED | REJECTED]
    assert [each.paired for each in (store, joined([store_of(), store]), store_of(*DOCUMENTS), joined([]))] == [
        *(True, True, False, False)
    ]


def test_joined_stores_number_on() -> None:
    store = joined([store_of(*DOCUMENTS[:1]), store_of(), store_of(*DOCUMENTS[1:])])
    assert len(store) == 4
    assert [store.where(index) for index in range(4)] == [document.where for document in DOCUMENTS]
    assert store.read(1, 1, 2)[0].tolist() == [8, 9]
    assert len(joined([])) == 0
    assert len(joined([]).column("length")) == 0


@pytest.mark.parametrize(
    "changed",
    [
        TokenDocument(token=[7, 8, 9, 2], num_prompt=2, is_answer=True),
        TokenDocument(token=[7, 8, 9, EOS], num_prompt=1, is_answer=True),
        TokenDocument(token=[7, 8, 9, EOS], num_prompt=2),
        TokenDocument(token=[7, 8, 9, EOS], num_prompt=2, is_answer=True, trainable=[False, False, False, True]),
    ],
)
def test_the_digest_tells_what_would_train_differently(changed: TokenDocument) -> None:
    one, other = store_of(DOCUMENTS[1]), store_of(changed)
    assert bytes(one.column("digest")[0]) != bytes(other.column("digest")[0])


def test_every_end_of_an_answer_lets_it_be_filled() -> None:
    collected = MemoryStore(EOS, (9,))
    for end in (EOS, 9, 8):
        collected.add(TokenDocument(token=[5, end], num_prompt=1, is_answer=True))
    assert collected.finish().column("flags").tolist() == [ANSWER | FILLED, ANSWER | FILLED, ANSWER]


def test_a_record_has_the_fields_of_its_type() -> None:
    maker = RecordMaker(EOS)
    maker.make(DOCUMENTS[0])
    token, record, bits = maker.make(DOCUMENTS[1])
    fields = np.frombuffer(record, dtype=DOCUMENT)[0]
    assert token == array("i", [7, 8, 9, EOS])
    assert (bits, fields["start"], fields["length"], fields["prompt"]) == (b"", 3, 4, 2)
    assert (fields["file"], fields["record"]) == (1, -1)


def test_the_first_document_with_an_id_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = joined([store_of(*DOCUMENTS[:2]), store_of(), store_of(*DOCUMENTS[2:])])
    for scan in (1, 3, 1 << 22):
        monkeypatch.setattr(store_module, "_SCAN", scan)
        assert [whole.first_with(token) for token in (5, 6, 9, 4, 3, 99)] == [0, 0, 1, 2, 3, None]
