"""Packing: exact on small rows, invariants on random ones, best fit against a slow reference."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.data import PackedRows, TokenDocument, best_fit, pack
from difflm.errors import ConfigError, DataError
from difflm.types import PADDING

EOS, PAD = 1, 0


def text(length: int, first: int = 10, where: str = "f") -> TokenDocument:
    return TokenDocument(token=[*range(first, first + length - 1), EOS], where=where)


def answer(num_prompt: int, length: int, first: int = 10, where: str = "f:1") -> TokenDocument:
    return TokenDocument(
        token=[*range(first, first + length - 1), EOS], num_prompt=num_prompt, is_answer=True, where=where
    )


def pack_small(documents: list[TokenDocument], row_length: int = 8, **options: object) -> PackedRows:
    return pack(documents, row_length=row_length, pad_id=PAD, eos_id=EOS, **options)  # type: ignore[arg-type]


def test_two_documents_share_a_row() -> None:
    batch = pack_small([text(3), text(4, first=20)]).batch([0])
    assert batch.token_BL.tolist() == [[10, 11, EOS, 20, 21, 22, EOS, PAD]]
    assert batch.document_BL.tolist() == [[0, 0, 0, 1, 1, 1, 1, PADDING]]
    assert batch.position_BL.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0]]
    assert batch.trainable_BL.tolist() == [[True] * 7 + [False]]
    assert batch.row_B.tolist() == [0]
    assert all(
        tensor.dtype == torch.int64 for tensor in (batch.token_BL, batch.document_BL, batch.position_BL, batch.row_B)
    )


def test_the_prompt_is_not_trainable() -> None:
    batch = pack_small([answer(2, 4), answer(1, 3, first=20)]).batch([0])
    assert batch.trainable_BL.tolist() == [[False, False, True, True, False, True, True, False]]


def test_fill_runs_to_the_multiple_and_is_supervised() -> None:
    rows = pack_small([answer(2, 5), answer(1, 3, first=20)], row_length=16, fill_multiple=4)
    batch = rows.batch([0])
    assert batch.token_BL.tolist() == [[10, 11, 12, 13, EOS, EOS, EOS, EOS, 20, 21, EOS, EOS, *[PAD] * 4]]
    assert batch.document_BL.tolist() == [[0] * 8 + [1] * 4 + [PADDING] * 4]
    assert batch.position_BL.tolist() == [[*range(8), *range(4), 0, 0, 0, 0]]
    assert batch.trainable_BL.tolist() == [[False] * 2 + [True] * 6 + [False] + [True] * 3 + [False] * 4]
    assert (rows.counts.fill, rows.counts.tokens, rows.counts.trainable) == (4, 12, 9)


def test_plain_text_is_not_filled() -> None:
    rows = pack_small([text(5)], fill_multiple=4)
    assert rows.counts.fill == 0
    assert rows.batch([0]).document_BL.tolist() == [[0] * 5 + [PADDING] * 3]


def test_a_long_text_is_cut_and_its_rest_shares_a_row() -> None:
    rows = pack_small([text(19), text(4, first=50)])
    batch = rows.batch(range(3))
    assert batch.token_BL[0].tolist() == list(range(10, 18))
    assert batch.token_BL[1].tolist() == list(range(18, 26))
    assert batch.token_BL[2].tolist() == [26, 27, EOS, 50, 51, 52, EOS, PAD]
    assert batch.position_BL[1].tolist() == list(range(8))
    assert (rows.counts.split, rows.counts.pieces, rows.counts.documents) == (1, 4, 2)


def test_bos_of_a_cut_text_is_untrained_once() -> None:
    long = TokenDocument(token=[*range(10, 29), EOS], num_prompt=1)
    rows = pack_small([long])
    assert rows.counts.trainable == 19
    assert not rows.batch([0]).trainable_BL[0, 0]


def test_a_long_answer_is_dropped_and_counted() -> None:
    rows = pack_small([answer(2, 9, where="f:1"), answer(2, 8, where="f:2")])
    assert len(rows) == 1
    counts = rows.counts
    assert (counts.dropped, counts.dropped_tokens, counts.first_dropped, counts.documents) == (1, 9, "f:1", 2)
    with pytest.raises(DataError, match="f:1: prompt and completion have 9 tokens"):
        pack_small([answer(2, 9)], overlong="refuse")
    with pytest.raises(DataError, match=r"f:1: none of the 1 .* raise row_length \(8 tokens\)"):
        pack_small([answer(2, 9)])


def test_unusable_settings() -> None:
    with pytest.raises(ConfigError, match="row_length: 10 is not a multiple of 4"):
        pack_small([text(3)], row_length=10, fill_multiple=4)
    with pytest.raises(ConfigError, match="row_length: 0"):
        pack_small([text(3)], row_length=0)
    with pytest.raises(DataError, match="no document"):
        pack_small([])


def test_rows_follow_the_order_of_the_documents() -> None:
    # Longest first would open the rows in the opposite order.
    lengths = [3, 4, 5, 6, 7, 8]
    assert best_fit(lengths, row_length=8) == [[0, 2], [1], [3], [4], [5]]


def test_batch_takes_rows_in_the_order_asked_for() -> None:
    rows = pack_small([text(8, first=10 * index) for index in range(1, 5)])
    batch = rows.batch([2, 0, 2])
    assert batch.token_BL[:, 0].tolist() == [30, 10, 30]
    assert batch.row_B.tolist() == [2, 0, 2]


def test_fingerprint_tells_data_apart() -> None:
    one = pack_small([answer(2, 4)]).fingerprint
    assert one == pack_small([answer(2, 4, where="elsewhere")]).fingerprint
    assert one != pack_small([answer(1, 4)]).fingerprint
    assert one != pack_small([answer(2, 4, first=11)]).fingerprint


documents = st.lists(
    st.tuples(st.booleans(), st.integers(2, 40), st.integers(0, 100)).map(
        lambda drawn: answer(drawn[2] % drawn[1], drawn[1]) if drawn[0] else text(drawn[1])
    ),
    min_size=1,
    max_size=25,
)


@given(documents, st.sampled_from([None, 1, 4, 8]))
@settings(max_examples=60)
def test_invariants(given_documents: list[TokenDocument], fill_multiple: int | None) -> None:
    """No token is lost or doubled, documents are contiguous, positions restart, padding is inert."""
    if all(document.is_answer and len(document.token) > 16 for document in given_documents):
        return
    rows = pack_small(given_documents, row_length=16, fill_multiple=fill_multiple)
    batch = rows.batch(range(len(rows)))
    pieces: Counter[tuple[tuple[int, ...], tuple[bool, ...]]] = Counter()
    for row in range(len(rows)):
        runs = torch.unique_consecutive(batch.document_BL[row]).tolist()
        assert runs == [*range(max(runs) + 1), *([PADDING] if PADDING in runs else [])]
        for document in range(max(runs) + 1):
            inside = batch.document_BL[row] == document
            assert batch.position_BL[row][inside].tolist() == list(range(int(inside.sum())))
            pieces[tuple(batch.token_BL[row][inside].tolist()), tuple(batch.trainable_BL[row][inside].tolist())] += 1
        padding = batch.document_BL[row] == PADDING
        assert not batch.trainable_BL[row][padding].any()
        assert (batch.position_BL[row][padding] == 0).all()
        assert (batch.token_BL[row][padding] == PAD).all()
    assert pieces == Counter(
        piece for document in given_documents for piece in expected_pieces(document, fill_multiple)
    )
    counts = rows.counts
    given_tokens = sum(len(document.token) for document in given_documents)
    assert counts.tokens - counts.fill + counts.dropped_tokens == given_tokens
    assert counts.fill_rate == pytest.approx(float((batch.document_BL != PADDING).double().mean()))
    assert counts.trainable == int(batch.trainable_BL.sum())


def expected_pieces(
    document: TokenDocument, fill_multiple: int | None
) -> list[tuple[tuple[int, ...], tuple[bool, ...]]]:
    token = list(document.token)
    if len(token) > 16 and document.is_answer:
        return []
    while fill_multiple and document.is_answer and len(token) % fill_multiple:
        token.append(EOS)
    trained = [index >= document.num_prompt for index in range(len(token))]
    return [
        (tuple(token[start : start + 16]), tuple(trained[start : start + 16])) for start in range(0, len(token), 16)
    ]


def test_fill_rate_of_realistic_documents() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, 140, (2000,), generator=generator).tolist()
    assert pack_small([text(length) for length in lengths], row_length=256).counts.fill_rate > 0.98


def test_greedy_takes_documents_in_order() -> None:
    rows = pack_small([text(5), text(7, first=20), text(2, first=40), text(6, first=60)], packing="greedy")
    batch = rows.batch(range(len(rows)))
    assert batch.token_BL[:, 0].tolist() == [10, 20, 40]
    assert batch.document_BL[2].tolist() == [0] * 2 + [1] * 6
    assert (rows.counts.rows, rows.counts.rows_greedy, rows.counts.rows_best_fit) == (3, 3, 3)
    best = pack_small([text(5), text(7), text(3)])
    assert (best.counts.rows, best.counts.rows_greedy) == (2, 3)
    assert best.counts.fill_rate_of("greedy") == pytest.approx(15 / 24)


def test_long_text_is_left_out_by_choice() -> None:
    rows = pack_small([text(19, where="f:1"), text(4)], long_text="drop")
    counts = rows.counts
    assert (counts.dropped, counts.dropped_text, counts.dropped_tokens, counts.first_dropped) == (1, 1, 19, "f:1")
    assert (counts.rows, counts.split, counts.tokens) == (1, 0, 4)
    with pytest.raises(DataError, match="f:1: none of the 1 plain text documents fits"):
        pack_small([text(19, where="f:1")], long_text="drop")


def lengths_of(rows: PackedRows) -> list[int]:
    batch = rows.batch(range(len(rows)))
    return (batch.document_BL != PADDING).sum(1).tolist()


@pytest.mark.parametrize("packing", ["best_fit", "greedy"])
def test_a_share_of_the_rows_is_shorter(packing: str) -> None:
    long = [text(64 * 400)]
    held = lengths_of(pack_small(long, row_length=64, random_length=0.3, packing=packing, seed=1))
    short = [length for length in held[:-1] if length < 64]
    assert 0.2 < len(short) / len(held) < 0.4
    assert min(short) < 12
    assert max(short) > 50
    small = [text(2 + index % 5) for index in range(3000)]
    held = lengths_of(pack_small(small, row_length=64, random_length=0.3, packing=packing, seed=1))
    assert 0.2 < sum(length < 58 for length in held) / len(held) < 0.4
    assert all(length == 64 for length in lengths_of(pack_small(long, row_length=64, packing=packing)))


def test_random_rooms_are_a_function_of_the_seed_and_lose_nothing() -> None:
    given_documents = [text(40), answer(3, 20), text(100), answer(1, 30)]
    one, again, other = (
        pack_small(given_documents, row_length=32, random_length=0.5, seed=seed, fill_multiple=8) for seed in (1, 1, 2)
    )
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert one.counts.tokens - one.counts.fill == 190
    batch = one.batch(range(len(one)))
    assert int((batch.document_BL != PADDING).sum()) == one.counts.tokens
    assert int(batch.trainable_BL.sum()) == one.counts.trainable


def test_labels_decide_what_is_learnt_and_such_rows_are_never_cut() -> None:
    learnt = [False, True, False, True]
    labelled = TokenDocument(token=[5, 6, 7, EOS], num_prompt=1, is_answer=True, trainable=learnt, where="f:1")
    rows = pack_small([labelled, text(3)], fill_multiple=4)
    assert rows.batch([0]).trainable_BL.tolist() == [[False, True, False, True, True, True, True, False]]
    assert (rows.counts.trainable, rows.counts.fill) == (5, 0)
    # An end that is not learnt is not repeated: that would teach nothing but the repetition.
    for document in (
        TokenDocument(token=[5, EOS], is_answer=True, trainable=[True, False]),
        TokenDocument(token=[5, 6], num_prompt=1, is_answer=True),
    ):
        assert pack_small([document], fill_multiple=4).counts.fill == 0


def test_pieces_of_labelled_rows_read_the_right_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    given_documents = []
    for length in (3, 9, 17, 8, 5):
        learnt = (torch.rand(length, generator=generator) < 0.5).tolist()
        learnt[-1] = True
        given_documents.append(TokenDocument(token=[*range(10, 9 + length), EOS], is_answer=True, trainable=learnt))
    rows = pack_small(given_documents, row_length=24, packing="greedy")
    batch = rows.batch(range(len(rows)))
    assert batch.trainable_BL[batch.document_BL != PADDING].tolist() == [
        each for document in given_documents for each in document.trainable or ()
    ]


def pair(num_prompt: int, chosen: int, rejected: int, first: int = 10, where: str = "f:1") -> list[TokenDocument]:
    """Return a pair whose answers have so many tokens, EOS included."""
    return [
        replace(answer(num_prompt, num_prompt + length, first, where), side=side)
        for side, length in (("chosen", chosen), ("rejected", rejected))
    ]


def test_a_pair_stands_in_one_row_and_each_answer_is_a_document() -> None:
    rows = pack_small([*pair(1, 2, 3), *pair(2, 2, 2, first=30)], row_length=16, fill_multiple=4)
    batch = rows.batch([0])
    assert batch.paired
    assert batch.token_BL[0].tolist() == [10, 11, EOS, EOS, 10, 11, 12, EOS, 30, 31, 32, EOS, 30, 31, 32, EOS]
    assert batch.trainable_BL[0].tolist() == [False, *[True] * 3] * 2 + [False, False, True, True] * 2
    assert batch.pairs().chosen_BL[0].tolist() == [0] * 4 + [-1] * 4 + [1] * 4 + [-1] * 4
    assert len(rows) == 1
    assert (rows.counts.documents, rows.counts.fill, rows.counts.pieces) == (4, 1, 4)


def test_a_pair_that_does_not_fit_is_dropped_whole() -> None:
    """Filled, the second pair takes 12 tokens, though each of its answers fits by itself."""
    given_documents = [*pair(1, 2, 3), *pair(2, 3, 2, first=30, where="f:2")]
    rows = pack_small(given_documents, fill_multiple=4)
    counts = rows.counts
    assert (len(rows), counts.dropped, counts.dropped_tokens, counts.first_dropped) == (1, 2, 9, "f:2")
    message = (
        r"f:2: a pair's two answers, each with its prompt, have 12 tokens, more than a row; raise row_length \(8\)"
    )
    with pytest.raises(DataError, match=message):
        pack_small(given_documents, fill_multiple=4, overlong="refuse")
    with pytest.raises(DataError, match="f:2: none of the 1 preference pairs fits into a row"):
        pack_small(given_documents[2:], fill_multiple=4)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=20),
    st.sampled_from([None, 4]),
    st.sampled_from(["best_fit", "greedy"]),
    st.sampled_from([0.0, 0.5]),
)
@settings(max_examples=40)
def test_no_pair_is_torn(sizes: list[tuple[int, int, int]], fill: int | None, packing: str, random: float) -> None:
    given_documents = [each for number, size in enumerate(sizes) for each in pair(*size, first=100 * number + 10)]
    try:
        rows = pack_small(
            given_documents, row_length=24, fill_multiple=fill, packing=packing, random_length=random, seed=3
        )
    except DataError:
        return
    batch = rows.batch(range(len(rows)))
    pairs = batch.pairs()
    for number in range(pairs.count):
        sides = [batch.token_BL[side == number].tolist() for side in (pairs.chosen_BL, pairs.rejected_BL)]
        learnt = [int(batch.trainable_BL[side == number].sum()) for side in (pairs.chosen_BL, pairs.rejected_BL)]
        assert (pairs.chosen_BL == number).any(dim=1).tolist() == (pairs.rejected_BL == number).any(dim=1).tolist()
        assert sides[0][0] == sides[1][0]
        size = sizes[sides[0][0] // 100]
        assert fill or learnt == list(size[1:])
    assert pairs.count == len(sizes) - rows.counts.dropped // 2
    assert (batch.document_BL != PADDING).sum() == rows.counts.tokens


def test_an_answer_that_is_cut_has_no_end() -> None:
    """EOS is learnt where the answer ends and nowhere else; what is cut off is counted."""
    whole, long = answer(2, 7, where="f:1"), answer(2, 11, first=50, where="f:2")
    rows = pack_small([whole, long, text(19, first=70)], fill_multiple=4, overlong="cut")
    batch = rows.batch(range(len(rows)))
    assert batch.token_BL[:2].tolist() == [[*range(10, 16), EOS, EOS], [*range(50, 58)]]
    assert batch.trainable_BL[:2].tolist() == [[False] * 2 + [True] * 6] * 2
    counts = rows.counts
    assert (counts.cut, counts.dropped, counts.dropped_tokens, counts.split, counts.fill) == (1, 0, 3, 1, 1)
    assert counts.trainable == int(batch.trainable_BL.sum())
    assert counts.tokens == int((batch.document_BL != PADDING).sum())


def test_a_cut_that_leaves_nothing_to_learn_is_dropped_and_counted() -> None:
    asks = answer(8, 10, where="f:2")
    marked = TokenDocument(token=[5] * 10, is_answer=True, trainable=[False] * 8 + [True] * 2, where="f:3")
    early = TokenDocument(token=[6] * 10, is_answer=True, trainable=[False, True] * 5, where="f:4")
    rows = pack_small([answer(2, 5), asks, marked, early], overlong="cut")
    counts = rows.counts
    assert (counts.cut, counts.dropped, counts.untrainable, counts.first_dropped) == (1, 2, 2, "f:2")
    assert counts.dropped_tokens == 22
    assert counts.trainable == 3 + 4 == int(rows.batch(range(len(rows))).trainable_BL.sum())
    with pytest.raises(DataError, match="f:2: none of the 1 prompt"):
        pack_small([asks], overlong="cut")


def test_pairs_are_never_cut() -> None:
    rows = pack_small([*pair(2, 2, 2), *pair(2, 9, 2, where="f:2")], overlong="cut")
    assert (rows.counts.cut, rows.counts.dropped, rows.counts.untrainable) == (0, 2, 0)
