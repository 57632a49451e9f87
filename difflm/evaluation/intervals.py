"""How far a mean of scores may be off: 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson score interval of a share of `count` yes-or-no answers.

    Args:
        share: 0 to 1.
        count: answers, >= 1.
        z: normal quantile; 1.96 is 95 %.
    """
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the middle 95 % of the means of 2000 seeded resamples.

    Args:
        values: at least one.
        seed: of the resamples.
    """
    value_N = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = [float(value_N[generator.integers(0, len(value_N), len(value_N))].mean()) for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """Return the interval of the mean: Wilson's if every score is 0 or 1, else the bootstrap's."""
    if set(scores) <= {0.0, 1.0}:
        return wilson(sum(scores) / len(scores), len(scores))
    return bootstrap(scores)
