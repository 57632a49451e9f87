"""Acceptance: strict threshold, floor by rank, pinned ties; proposals that can never be a suppressed id."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.diffusion.acceptance import ThresholdAcceptance, accept, propose


def reference(confidence: list[float], masked: list[bool], threshold: float, min_accept: int) -> list[bool]:
    """The rule in words, as loops: all strictly above, or the `min_accept` best, lowest index first among equals."""
    places = [i for i, open_ in enumerate(masked) if open_]
    high = [i for i in places if confidence[i] > threshold]
    if len(high) < min_accept:
        high = sorted(places, key=lambda i: (-confidence[i], i))[:min_accept]
    return [i in high for i in range(len(confidence))]


GRID = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])  # coarse, so that ties and exact hits of the threshold are common


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(GRID, st.booleans()), min_size=1, max_size=9), GRID, st.integers(1, 4))
def test_accept_equals_the_loops(cells: list[tuple[float, bool]], threshold: float, min_accept: int) -> None:
    confidence, masked = [c for c, _ in cells], [m for _, m in cells]
    taken = accept(torch.tensor([confidence]), torch.tensor([masked]), threshold=threshold, min_accept=min_accept)
    assert taken[0].tolist() == reference(confidence, masked, threshold, min_accept)


def test_rows_do_not_influence_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(5, 8, generator=generator)
    masked = torch.rand(5, 8, generator=generator) < 0.6
    together = ThresholdAcceptance(0.7, 2)(confidence, masked)
    alone = [ThresholdAcceptance(0.7, 2)(confidence[i : i + 1], masked[i : i + 1])[0] for i in range(5)]
    assert torch.equal(together, torch.stack(alone))


def test_the_threshold_is_strict() -> None:
    confidence = torch.tensor([[0.5, 0.75, 0.25]])
    masked = torch.ones(1, 3, dtype=torch.bool)
    assert accept(confidence, masked, threshold=0.5).tolist() == [[False, True, False]]
    assert accept(confidence, masked, threshold=0.25).tolist() == [[True, True, False]]


def test_threshold_one_takes_exactly_min_accept_even_at_full_confidence() -> None:
    confidence = torch.ones(1, 6)
    masked = torch.tensor([[False, True, True, False, True, True]])
    for count in (1, 2, 3):
        taken = accept(confidence, masked, threshold=1.0, min_accept=count)[0]
        assert taken.nonzero().flatten().tolist() == [1, 2, 4, 5][:count]


def test_ties_go_to_the_lowest_position_in_wide_rows() -> None:
    taken = accept(torch.full((2, 500), 0.5), torch.ones(2, 500, dtype=torch.bool), threshold=0.9, min_accept=3)
    assert taken.nonzero().tolist() == [[row, place] for row in (0, 1) for place in (0, 1, 2)]


def test_fewer_masked_positions_than_the_floor_takes_all_and_nothing_else() -> None:
    confidence = torch.tensor([[0.9, 0.0, 0.9, 0.9]])
    masked = torch.tensor([[False, True, False, False]])
    assert accept(confidence, masked, threshold=0.5, min_accept=3).tolist() == [[False, True, False, False]]


def test_nothing_masked_takes_nothing() -> None:
    assert not accept(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool), threshold=0.5).any()


def test_greedy_proposal_is_the_argmax_with_its_suppressed_softmax_probability() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 9.0], [0.0, 0.0, -1.0, 5.0]])
    token, confidence = propose(logits, suppressed_ids=torch.tensor([3]))
    assert token.tolist() == [1, 0]  # the second row is a tie: lowest id
    first = math.exp(3) / (math.exp(1) + math.exp(3) + math.exp(2))
    second = 1 / (2 + math.exp(-1))
    assert confidence.tolist() == pytest.approx([first, second], rel=1e-6)
    assert logits[0, 3] == 9.0, "the caller's logits must not change"


def test_ties_go_to_the_lowest_id_in_wide_rows() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randint(0, 3, (16, 50_003), generator=generator).float()
    token, _ = propose(logits)
    assert token.tolist() == [row.index(max(row)) for row in logits.tolist()]


def test_sampling_follows_the_tempered_distribution_and_reports_its_probability() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, 8.0, -torch.inf], dtype=torch.float64)
    rows = 20_000
    generator = torch.Generator().manual_seed(2)
    token, confidence = propose(
        logits.expand(rows, 5), suppressed_ids=torch.tensor([3]), temperature=0.5, generator=generator
    )
    weight = [math.exp(0), math.exp(2), math.exp(4), 0.0, 0.0]
    probability = [w / sum(weight) for w in weight]
    frequency = torch.bincount(token, minlength=5) / rows
    # 5 standard errors of a binomial share
    assert (frequency - torch.tensor(probability)).abs().max() < 5 * math.sqrt(0.25 / rows)
    assert torch.allclose(confidence, torch.tensor(probability, dtype=torch.float64)[token])


def test_sampling_consumes_one_number_per_row_in_order() -> None:
    logits = torch.randn(6, 11, generator=torch.Generator().manual_seed(3))
    together = propose(logits, temperature=1.0, generator=torch.Generator().manual_seed(4))[0]
    generator = torch.Generator().manual_seed(4)
    alone = [propose(logits[i : i + 1], temperature=1.0, generator=generator)[0] for i in range(6)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-53])
def test_the_ends_of_the_uniform_range_never_pick_a_token_of_mass_zero(
    uniform: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "rand", lambda rows, **options: torch.full((rows,), uniform, dtype=torch.float64))
    logits = torch.tensor([[0.0, 0.3, 0.1, 0.2, 0.0]])
    token, confidence = propose(
        logits, suppressed_ids=torch.tensor([0, 4]), temperature=1.0, generator=torch.Generator()
    )
    assert token.tolist() == [1 if uniform == 0.0 else 3]
    assert confidence.item() > 0


def test_a_tiny_temperature_is_greedy_and_finite() -> None:
    logits = torch.tensor([[10.0, 30.0, 29.0]])
    token, confidence = propose(logits, temperature=1e-38, generator=torch.Generator().manual_seed(0))
    assert token.tolist() == [1]
    assert confidence.tolist() == [1.0]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.3, 1.0, 5.0]), st.sets(st.integers(0, 6), max_size=6))
def test_suppressed_ids_are_never_proposed(seed: int, temperature: float, suppressed: set[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 10 * torch.randn(32, 7, generator=generator)
    ids = torch.tensor(sorted(suppressed), dtype=torch.int64)
    token, confidence = propose(logits, suppressed_ids=ids, temperature=temperature, generator=generator)
    assert not suppressed & set(token.tolist())
    assert ((confidence > 0) & (confidence <= 1)).all()


def test_half_precision_logits_are_widened() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.bfloat16)
    confidence = propose(logits)[1]
    assert confidence.dtype == torch.float32
    assert confidence.item() == pytest.approx(math.exp(2) / (1 + math.e + math.exp(2)), rel=1e-6)
