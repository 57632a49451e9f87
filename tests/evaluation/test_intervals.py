from __future__ import annotations

import pytest

from difflm.evaluation.intervals import bootstrap, interval, wilson


def test_wilson_equals_published_values() -> None:
    # Newcombe 1998, table I: 81 of 263 and 0 of 20.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(1.0, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)


def test_the_bootstrap_is_near_the_normal_interval_and_seeded() -> None:
    values = [number / 199 for number in range(200)]
    low, high = bootstrap(values)
    half = 1.96 * (1 / 12 / 200) ** 0.5
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.01)
    assert bootstrap(values) == (low, high)
    assert bootstrap(values, seed=1) != (low, high)
    assert bootstrap([0.25] * 5) == (0.25, 0.25)


def test_yes_or_no_scores_have_wilson_s_interval_others_the_bootstrap_s() -> None:
    assert interval([0.0, 1.0, 1.0, 1.0]) == wilson(0.75, 4)
    assert interval([0.0, 0.5, 1.0]) == bootstrap([0.0, 0.5, 1.0])
