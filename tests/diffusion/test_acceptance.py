"""Acceptance: strict threshold, floor by rank, pinned ties, fixed numbers, an entropy budget."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.diffusion.acceptance import (
    Acceptance,
    EntropyAcceptance,
    FixedAcceptance,
    ThresholdAcceptance,
    accept,
    most_confident,
)


def reference(confidence: list[float], threshold: float, min_accept: int) -> list[int]:
    """The rule in words, as loops: all strictly above, or the `min_accept` best, lowest index first among equals."""
    high = [i for i in range(len(confidence)) if confidence[i] > threshold]
    if len(high) < min_accept:
        high = []
        for value in sorted(set(confidence), reverse=True):
            high += [i for i in range(len(confidence)) if confidence[i] == value]
        high = sorted(high[:min_accept])
    return high


GRID = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])  # coarse, so that ties and exact hits of the threshold are common
CONFIDENCES = st.lists(GRID, min_size=1, max_size=9)


@settings(max_examples=200, deadline=None)
@given(CONFIDENCES, GRID, st.integers(1, 4))
def test_accept_equals_the_loops(confidence: list[float], threshold: float, min_accept: int) -> None:
    expected = reference(confidence, threshold, min_accept)
    assert accept(confidence, threshold=threshold, min_accept=min_accept) == expected
    assert ThresholdAcceptance(threshold, min_accept)(confidence, ()) == expected


def test_the_threshold_is_strict() -> None:
    assert accept([0.5, 0.75, 0.25], threshold=0.5) == [1]
    assert accept([0.5, 0.75, 0.25], threshold=0.25) == [0, 1]


def test_threshold_one_takes_exactly_min_accept_even_at_full_confidence() -> None:
    for count in (1, 2, 3):
        assert accept([1.0] * 6, threshold=1.0, min_accept=count) == list(range(count))


def test_fewer_positions_than_the_floor_takes_all_and_nothing_else() -> None:
    assert accept([0.0], threshold=0.5, min_accept=3) == [0]
    assert FixedAcceptance(3)([0.1, 0.2], ()) == [0, 1]


def test_ties_go_to_the_lowest_position() -> None:
    assert most_confident([0.5] * 500, 3) == [0, 1, 2]


@given(CONFIDENCES, st.integers(1, 9))
def test_a_fixed_number_is_the_threshold_rule_that_nothing_passes(confidence: list[float], count: int) -> None:
    assert FixedAcceptance(count)(confidence, ()) == reference(confidence, 2.0, count)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5]), min_size=1, max_size=8), st.sampled_from([0.0, 0.5, 1.2, 4.0]))
def test_the_entropy_budget_is_the_largest_set_it_pays_for(entropies: list[float], bound: float) -> None:
    taken = EntropyAcceptance(bound)([0.0] * len(entropies), entropies)
    costs = sorted(entropies)
    sizes = [n for n in range(1, len(costs) + 1) if sum(costs[:n]) - costs[n - 1] <= bound]
    assert len(taken) == max(sizes)
    assert sorted(entropies[i] for i in taken) == costs[: len(taken)]
    assert taken == sorted(set(taken))


@pytest.mark.parametrize("rule", [ThresholdAcceptance(1.0), FixedAcceptance(1), EntropyAcceptance(0.0)])
def test_every_strategy_takes_at_least_one(rule: Acceptance) -> None:
    assert len(rule([0.1, 0.1], [2.0, 2.0])) == 1
