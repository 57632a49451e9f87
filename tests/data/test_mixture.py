"""Mixtures: shares, passes, noise epochs and resuming, against a slow simulation."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.data import Loader, RowOrder, TokenDocument, pack
from difflm.data.mixture import MixtureOrder, largest_remainder, mix, row_order
from difflm.errors import DataError

EOS = 1


def drawn(order: MixtureOrder, epochs: int) -> list[tuple[int, int]]:
    """Return (row, pass) of all slots, one by one through the loader."""
    loader = Loader(order)
    found = []
    for _ in range(epochs * order.num_rows):
        (epoch,), (row,) = loader.next(1)
        found.append((row, epoch))
    return found


@given(
    st.lists(st.tuples(st.integers(1, 9), st.floats(0.05, 5.0)), min_size=1, max_size=4),
    st.integers(0, 5),
    st.booleans(),
)
@settings(max_examples=60)
def test_each_source_is_passed_through_again_and_again(
    sources: list[tuple[int, float]], seed: int, shuffle: bool
) -> None:
    """The c-th draw from a source is in its pass c // R, and each pass draws each row once."""
    order = MixtureOrder(
        sizes=tuple(size for size, _ in sources), weights=tuple(w for _, w in sources), seed=seed, shuffle=shuffle
    )
    taken: Counter[int] = Counter()
    seen: dict[tuple[int, int], list[int]] = {}
    bounds = [sum(order.sizes[:number]) for number in range(len(sources) + 1)]
    slots = drawn(order, 3)
    for row, epoch in slots:
        source = next(number for number in range(len(sources)) if row < bounds[number + 1])
        assert epoch == taken[source] // order.sizes[source]
        seen.setdefault((source, epoch), []).append(row)
        taken[source] += 1
    assert [taken[number] for number in range(len(sources))] == [3 * count for count in order.slots()]
    for (source, epoch), rows in seen.items():
        whole = (epoch + 1) * order.sizes[source] <= taken[source]
        expected = list(range(bounds[source], bounds[source + 1]))
        assert sorted(rows) == expected if whole else len(set(rows)) == len(rows)
        assert shuffle or rows == expected[: len(rows)]


def test_shares_are_those_of_the_weights() -> None:
    order = MixtureOrder(sizes=(90, 10), weights=(1.0, 3.0))
    assert (order.num_rows, order.slots()) == (100, (25, 75))
    rows = order.epoch(0)
    assert sum(row >= 90 for row in rows) == 75
    # Interleaved, not one source after the other.
    assert 10 < sum(row >= 90 for row in rows[:25]) < 25
    small = MixtureOrder(sizes=(3, 3), weights=(0.01, 0.99))
    assert small.slots() == (1, 99), "an epoch is long enough for every source"


def test_orders_differ_by_epoch_seed_and_source() -> None:
    order = MixtureOrder(sizes=(20, 20), weights=(1.0, 1.0), seed=1)
    assert order.epoch(0) != order.epoch(1)
    assert order.epoch(0) != MixtureOrder(sizes=(20, 20), weights=(1.0, 1.0), seed=2).epoch(0)
    first = [row for row in order.epoch(0) if row < 20]
    second = [row - 20 for row in order.epoch(0) if row >= 20]
    assert first != second, "equally large sources are not shuffled alike"


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 6))
@settings(max_examples=40)
def test_resuming_anywhere_changes_nothing(sizes: list[int], cut: int) -> None:
    order = MixtureOrder(sizes=(5, 2, 7), weights=(2.0, 3.0, 1.0), seed=3)
    whole, first = Loader(order), Loader(order)
    expected = [whole.next(size) for size in sizes]
    got = [first.next(size) for size in sizes[:cut]]
    second = Loader(order, first.state)
    assert got + [second.next(size) for size in sizes[cut:]] == expected
    assert second.state == whole.state


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=6), st.integers(1, 200))
@settings(max_examples=60)
def test_largest_remainder_is_within_one_of_the_exact_share(weights: list[float], total: int) -> None:
    counts = largest_remainder(weights, total)
    assert sum(counts) == total
    assert all(abs(count - weight / sum(weights) * total) < 1 for count, weight in zip(counts, weights, strict=True))


def test_mixed_rows_are_the_rows_of_the_parts_numbered_on() -> None:
    parts = [
        pack(
            [TokenDocument(token=[first + n, EOS], where=f"{first}:{n}") for n in range(count)],
            row_length=4,
            pad_id=0,
            eos_id=EOS,
        )
        for first, count in ((10, 5), (50, 3))
    ]
    rows = mix(parts, ["a", "b"], [1.0, 2.0])
    assert (len(rows), [source.counts.rows for source in rows.sources]) == (5, [3, 2])
    batch = rows.batch(range(5))
    assert batch.token_BL[:3].tolist() == parts[0].batch(range(3)).token_BL.tolist()
    assert batch.token_BL[3:].tolist() == parts[1].batch(range(2)).token_BL.tolist()
    assert (rows.counts.documents, rows.counts.tokens, rows.counts.row_length) == (8, 16, 4)
    assert isinstance(row_order(rows, seed=0, shuffle=True), MixtureOrder)
    assert row_order(parts[0], seed=4, shuffle=True) == RowOrder(num_rows=3, seed=4)
    assert rows.fingerprint != mix(parts, ["a", "b"], [1.0, 3.0]).fingerprint
    assert row_order(mix(parts, ["a", "b"], ()), seed=0, shuffle=True) == RowOrder(num_rows=5)


@pytest.mark.parametrize(("sizes", "weights"), [((), ()), ((3, 0), (1.0, 1.0)), ((3,), (1.0, 1.0))])
def test_sources_without_rows_are_refused(sizes: tuple[int, ...], weights: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="cannot be drawn from"):
        MixtureOrder(sizes=sizes, weights=weights)


def test_pairs_and_other_documents_do_not_mix() -> None:
    plain = TokenDocument(token=[5, EOS], is_answer=True)
    sides = [replace(plain, side="chosen"), replace(plain, side="rejected")]
    parts = [pack(documents, row_length=8, pad_id=0, eos_id=EOS) for documents in ([plain], sides)]
    with pytest.raises(DataError, match=r"preference pairs beside other documents in one mixture \(a, b\)"):
        mix(parts, ["a", "b"], [1.0, 1.0])
    assert mix([parts[1]] * 2, ["a", "b"], [1.0, 1.0]).batch([0, 1]).pairs().count == 2
