"""When drafting goes on, grows, shrinks and rests, and what it costs at most by its own account."""

from __future__ import annotations

import random
from typing import Any

import pytest

from difflm.decode.left_to_right import LeftToRightDecoding
from difflm.decode.pace import LONGEST_REST, REST, Pace
from difflm.decode.policies.base import Proposal
from difflm.decode.policies.verified import Verified
from difflm.decode.sequences import decoding_of
from tests.decode.test_runner import request_of
from tests.decode.tiny import following


def pace(**settings: Any) -> Pace:
    settings.setdefault("window", 32)
    return Pace(Verified(**settings))


def cycle(state: Pace, *, checked: int, accepted: int) -> None:
    """Take in a forward that drafts so much, and the one that verifies it."""
    state.absorb(masks=checked, checked=0, accepted=0)
    state.absorb(masks=0, checked=checked, accepted=accepted)


def test_the_window_doubles_when_all_is_accepted_and_halves_when_half_or_less_is() -> None:
    state = pace(fallback=False, window=24)
    assert state.places(0, 100) == 7, "the first of 8 places is the last token's own"
    windows = [state.window]
    for checked, accepted in ((7, 7), (15, 15), (23, 12), (23, 11), (10, 5), (5, 2), (2, 0), (1, 0), (1, 1), (3, 2)):
        cycle(state, checked=checked, accepted=accepted)
        windows.append(state.window)
    assert windows == [8, 16, 24, 24, 12, 6, 3, 2, 2, 4, 4]


def test_a_start_beyond_the_window_is_the_window_and_the_limit_cuts_both() -> None:
    assert pace(window=4, start=9).window == 4
    state = pace(window=8, start=8)
    assert [state.places(0, room) for room in range(5)] == [0, 0, 2, 3, 4]
    fusing = pace(window=8, start=8, fused=True)
    assert [fusing.places(3, room) for room in range(5)] == [0, 0, 2, 3, 4]
    assert pace(window=1).places(0, 100) == 0


def test_rests_come_when_more_is_lost_than_was_saved_and_double_until_something_is() -> None:
    state, rests, cycles = pace(window=8, draft_cost=0.0), list[int](), 0
    while len(rests) < 6:
        assert state.places(0, 100) > 0
        cycle(state, checked=1, accepted=0)
        cycles += 1
        if not state.resting:
            continue
        assert rests or cycles > 5, "a credit of one forward comes first"
        rests.append(state.resting)
        for left in range(state.resting, 0, -1):
            assert state.resting == left
            assert state.places(0, 100) == 0
            state.absorb(masks=0, checked=0, accepted=0)
    assert rests == [REST, 2 * REST, 4 * REST, 8 * REST, LONGEST_REST, LONGEST_REST]
    cycle(state, checked=7, accepted=7)
    assert (state.rest, state.balance) == (REST, 1.0)


def test_drafting_costs_more_than_its_rows() -> None:
    state = pace(window=8, row_cost=0.1, draft_cost=0.4)
    cycle(state, checked=7, accepted=1)
    assert (state.written, state.spent) == (3, pytest.approx(1.0 + 0.7 + 0.4 + 1.0 + 0.7))
    fused = pace(window=8, row_cost=0.1, draft_cost=0.4)
    fused.absorb(masks=7, checked=7, accepted=0)
    assert fused.spent == pytest.approx(1.0 + 1.4 + 0.4)


def test_without_fallback_it_never_rests() -> None:
    state = pace(fallback=False)
    for _ in range(50):
        cycle(state, checked=1, accepted=0)
        assert state.places(0, 100) > 0
    assert state.places(0, 100) == 1


def test_fusing_is_as_said_or_where_a_full_acceptance_is_likely_enough() -> None:
    assert pace(fused=True).places(7, 100) == 7
    assert pace(fused=False).places(7, 100) == 0
    cheap, dear = pace(row_cost=0.01, draft_cost=0.0), pace(row_cost=0.5)
    for state in (cheap, dear):
        for _ in range(20):
            cycle(state, checked=7, accepted=7)
    # A cycle of 8 saves most of a forward in 8 tokens; rows that cost nearly nothing are worth a try.
    assert cheap.places(7, 100) > 0
    assert dear.whole > 0.9
    for _ in range(20):
        cycle(cheap, checked=7, accepted=4)
    assert cheap.whole < 0.02
    assert cheap.places(7, 100) == 0


def fuses_by_simulation(whole: float, *, window: int, row_cost: float, draft_cost: float) -> bool:
    """Return whether fusing writes more per cost, all or nothing being accepted, by playing it."""
    rates = []
    for fused in (True, False):
        rng, tokens, cost, pending = random.Random(5), 0.0, 0.0, False
        for _ in range(40_000):
            checked = window - 1 if pending else 0
            right = rng.random() < whole
            drafting = not pending or fused
            tokens += 1 + (checked if right else 0)
            cost += 1.0 + row_cost * (checked + (window - 1 if drafting else 0)) + draft_cost * drafting
            pending = drafting and (right or not checked)
        rates.append(tokens / cost)
    return rates[0] > rates[1]


@pytest.mark.parametrize("row_cost", [0.02, 0.05, 0.2])
@pytest.mark.parametrize("draft_cost", [0.0, 0.5])
@pytest.mark.parametrize("whole", [0.05, 0.9])
def test_fusing_pays_where_it_is_done(whole: float, row_cost: float, draft_cost: float) -> None:
    costs = {"row_cost": row_cost, "draft_cost": draft_cost}
    state = pace(**costs, window=8, fallback=False)
    state.whole, state.written, state.spent = whole, 100, 40.0
    assert (state.places(7, 100) > 0) == fuses_by_simulation(whole, window=8, **costs)


def decoded(chance: float, *, tokens: int = 256, seed: int = 0, **settings: Any) -> tuple[float, LeftToRightDecoding]:
    """Return what a request costs by the account of its policy, each draft right with the same chance."""
    policy, rng = Verified(**{"window": 32, **settings}), random.Random(seed)
    request = request_of(
        prompt=(1, 2), policy=None, drafting=policy, max_new_tokens=tokens, block_size=1, clean_causal=True
    )
    state = decoding_of(request)
    assert isinstance(state, LeftToRightDecoding)
    cost = 0.0
    while state.outcome is None:
        work = following(state)
        unread = max(0, len(request.prompt) - 1 - work.start)
        masks = len(work.tokens) > work.num_clean
        cost += 1.0 + policy.row_cost * (len(work.tokens) - 1 - unread) + policy.draft_cost * masks
        clean = len(work.drafts) + 1
        said = [5] * clean + [5 if rng.random() < chance else 6 for _ in work.places[clean:]]
        state.absorb(work, Proposal(tokens=said, confidences=[1.0] * len(said)))
    assert state.outcome.tokens == [5] * tokens
    return cost, state


@pytest.mark.parametrize("fused", [True, False, None])
def test_drafts_that_are_never_right_cost_at_most_a_twentieth(fused: bool | None) -> None:
    for window in (2, 8, 32):
        cost, state = decoded(0.0, fused=fused, window=window)
        assert 256 < cost <= 1.05 * 256
        assert state.counts.accepted == 0
        assert state.counts.cycles >= 4, "it tries again"
    assert decoded(0.0, fallback=False, fused=fused)[0] > 1.05 * 256


@pytest.mark.parametrize("fused", [True, False, None])
@pytest.mark.parametrize("chance", [0.05, 0.2, 0.4, 0.6, 0.8])
def test_whatever_is_accepted_it_is_never_much_slower(chance: float, fused: bool | None) -> None:
    for seed in range(6):
        assert decoded(chance, seed=seed, fused=fused)[0] <= 1.05 * 256


def test_right_drafts_are_drafted_on() -> None:
    for fused, most in ((True, 42.0), (False, 52.0), (None, 52.0)):
        cost, state = decoded(1.0, fused=fused)
        assert cost < most
        assert state.counts.accepted == state.counts.drafted
        assert state.pace is not None
        assert (state.pace.window, state.pace.rest) == (32, REST)
        assert state.counts.accepted_at[0] == state.counts.cycles
    assert decoded(1.0, fused=None)[0] <= 1.1 * min(decoded(1.0, fused=each)[0] for each in (True, False))
