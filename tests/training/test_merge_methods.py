"""Which checkpoints each method takes, with which weights, and what it says when they do not suffice."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.errors import CheckpointError, ConfigError
from difflm.training.merge_methods import Best, Candidate, Ema, MergeMethod, RunFacts, Window, decay_weights

RUN = RunFacts(folder=Path("run"), block_size=8, every_tokens=100, last_tokens=1000)


def candidates(*steps: int, perplexity: tuple[float | None, ...] = ()) -> list[Candidate]:
    """Return checkpoints at these steps of 50 tokens."""
    values = perplexity or (1.0,) * len(steps)
    return [
        Candidate(folder=Path(f"step-{step}"), step=step, tokens=50 * step, perplexity=value)
        for step, value in zip(steps, values, strict=True)
    ]


def steps(method: MergeMethod, given: list[Candidate], run: RunFacts = RUN) -> list[tuple[int, object]]:
    return [(each.step, pytest.approx(weight)) for each, weight in method.members(given, run)]


def test_best_takes_the_lowest_perplexities_best_first() -> None:
    made = candidates(2, 4, 6, 8, 10, perplexity=(3.0, 1.0, math.nan, None, 2.0))
    assert steps(Best(2), made) == [(4, 0.5), (10, 0.5)]
    assert steps(Best(9), made) == [(4, 1 / 3), (10, 1 / 3), (2, 1 / 3)], "fewer if the run has fewer"
    with pytest.raises(CheckpointError, match=r"^run: no validated checkpoint of the final block size; train with"):
        Best(2).members(candidates(2, 4, perplexity=(None, math.nan)), RUN)


def test_the_window_is_the_last_ones_without_a_gap() -> None:
    made = candidates(2, 4, 6, 8, 10)
    assert steps(Window(3), made) == [(6, 1 / 3), (8, 1 / 3), (10, 1 / 3)]
    gap = candidates(2, 4, 8, 10)
    assert steps(Window(2), gap) == [(8, 0.5), (10, 0.5)]
    with pytest.raises(CheckpointError, match="only the last 2 checkpoints of block size 8 are there without a gap"):
        Window(3).members(gap, RUN)


def test_a_checkpoint_of_an_interruption_or_of_every_step_is_no_gap() -> None:
    interrupted = candidates(4, 6, 7, 8)
    assert steps(Window(4), interrupted) == [(step, 0.25) for step in (4, 6, 7, 8)]
    # Steps longer than the interval: every step saves, and crosses two multiples.
    coarse = RunFacts(folder=Path("run"), block_size=8, every_tokens=20, last_tokens=1000)
    assert steps(Window(3), candidates(3, 4, 5), coarse) == [(step, 1 / 3) for step in (3, 4, 5)]


@pytest.mark.parametrize(
    ("every", "last", "message"),
    [
        (100, 1000, r"raise checkpoint\.keep to 4 for the next run, or merge a window of 2$"),
        (100, 250, r"lower checkpoint\.every_tokens \(it is 100, the last part has 250 tokens\) for the next run, or"),
        (0, 1000, r"lower checkpoint\.every_tokens \(it is 0, the last part has 1000 tokens\)"),
    ],
)
def test_too_small_a_window_names_the_field_to_change(every: int, last: int, message: str) -> None:
    run = RunFacts(folder=Path("run"), block_size=8, every_tokens=every, last_tokens=last)
    with pytest.raises(CheckpointError, match=message) as caught:
        Window(4).members(candidates(8, 10), run)
    assert str(caught.value).startswith("run: window of 4, but only the last 2 checkpoints of block size 8 are there")
    assert "\n" not in str(caught.value)


def test_the_moving_average_is_the_recursion() -> None:
    made = candidates(2, 4, 6, 8)
    values = {2: 5.0, 4: -1.0, 6: 2.0, 8: 7.0}
    mean = values[2]
    for step in (4, 6, 8):
        mean = 0.6 * mean + 0.4 * values[step]
    chosen = Ema(0.6).members(made, RUN)
    assert sum(weight for _, weight in chosen) == pytest.approx(1.0)
    assert sum(weight * values[each.step] for each, weight in chosen) == pytest.approx(mean)
    assert steps(Ema(0.0), made) == [(8, 1.0)], "no memory: the newest alone"


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 12), shape=st.sampled_from(["linear", "cosine", "sqrt"]), seed=st.integers(0, 99))
def test_weights_of_the_window_emulate_their_decay(count: int, shape: str, seed: int) -> None:
    """The mean of checkpoints is the first one plus every later update, scaled by the decay at its place."""
    decays = {
        "linear": lambda share: 1 - share,
        "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
        "sqrt": lambda share: 1 - math.sqrt(share),
    }
    updates = [math.sin(seed + 3.7 * index) for index in range(count)]
    positions = [sum(updates[: index + 1]) for index in range(count)]
    weights = decay_weights(count, shape)  # type: ignore[arg-type]
    assert sum(weights) == pytest.approx(1.0)
    assert min(weights) >= 0
    mean = sum(weight * position for weight, position in zip(weights, positions, strict=True))
    annealed = updates[0] + sum(decays[shape](index / count) * updates[index] for index in range(1, count))
    assert mean == pytest.approx(annealed)


def test_linear_decay_is_the_uniform_mean() -> None:
    assert decay_weights(5, "linear") == [0.2] * 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Best(0), r"^best: 0 is below 1; give the number of checkpoints to average$"),
        (lambda: Window(-1), r"^window: -1 is below 1"),
        (lambda: Ema(1.0), r"^decay: 1\.0 is not in \[0, 1\)"),
        (lambda: Ema(math.nan), r"^decay: nan is not in \[0, 1\)"),
    ],
)
def test_a_mean_of_nothing_is_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ConfigError, match=message):
        make()
