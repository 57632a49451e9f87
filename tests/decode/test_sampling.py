"""Proposals: arg-max with pinned ties, draws that follow their distribution, one request's numbers its own."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from difflm.decode.drawing import Draw
from difflm.decode.sampling import Greedy, Gumbel, Multinomial, Rows, Rule, filtered


def rows(count: int, seed: int = 0, left: list[int] | None = None) -> Rows:
    return Rows(
        places=range(count),
        block_length=count,
        left=left or [-1] * count,
        generator=torch.Generator().manual_seed(seed),
    )


def proposed(rule: Rule, logits: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    made = rule(logits, [rows(len(logits), seed)])
    return made.token_M, made.confidence_M


def test_greedy_proposal_is_the_argmax_with_its_suppressed_softmax_probability() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 9.0], [0.0, 0.0, -1.0, 5.0]])
    token, confidence = proposed(Draw(suppressed=(3,)), logits)
    assert token.tolist() == [1, 0]  # the second row is a tie: lowest id
    first = math.exp(3) / (math.exp(1) + math.exp(3) + math.exp(2))
    second = 1 / (2 + math.exp(-1))
    assert confidence.tolist() == pytest.approx([first, second], rel=1e-6)
    assert logits[0, 3] == 9.0, "the caller's logits must not change"


@pytest.mark.parametrize("rule", [Draw(), Greedy(), Gumbel()])
def test_ties_go_to_the_lowest_id_in_wide_rows(rule: Rule) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randint(0, 3, (16, 50_003), generator=generator).float()
    assert proposed(rule, logits)[0].tolist() == [row.index(max(row)) for row in logits.tolist()]


def test_sampling_follows_the_tempered_distribution_and_reports_its_probability() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, 8.0, -torch.inf], dtype=torch.float64)
    count = 20_000
    token, confidence = proposed(Draw(temperature=0.5, suppressed=(3,)), logits.expand(count, 5), seed=2)
    weight = [math.exp(0), math.exp(2), math.exp(4), 0.0, 0.0]
    probability = [w / sum(weight) for w in weight]
    frequency = torch.bincount(token, minlength=5) / count
    # 5 standard errors of a binomial share
    assert (frequency - torch.tensor(probability)).abs().max() < 5 * math.sqrt(0.25 / count)
    assert torch.allclose(confidence, torch.tensor(probability, dtype=torch.float64)[token])


@pytest.mark.parametrize("rule", [Draw, Multinomial])
def test_any_temperature_leaves_a_distribution(rule: Callable[..., Rule]) -> None:
    """float32 has no number below 1e-45 and none above 4e38, a tensor no integer above 2**63."""
    logits = torch.tensor([[-2.0, 40.0, 3.0], [0.5, -50.0, 0.4999]])
    for temperature in (5e-324, 1e-310, 1e-46, 1e-40, 1e-38):
        token, confidence = proposed(rule(temperature=temperature), logits)
        assert (token.tolist(), confidence.tolist()) == ([1, 0], [1.0, 1.0])
    for temperature in (1e39, 1e308, 10**30):
        assert proposed(rule(temperature=temperature), logits)[1].tolist() == pytest.approx([1 / 3, 1 / 3])


def test_gumbel_noise_draws_from_the_tempered_softmax_and_the_confidence_is_the_clean_one() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    count = 20_000
    token, confidence = proposed(Gumbel(temperature=2.0), logits.expand(count, 3), seed=2)
    frequency = torch.bincount(token, minlength=3) / count
    assert (frequency - (logits / 2).softmax(0)).abs().max() < 5 * math.sqrt(0.25 / count)
    assert torch.allclose(confidence, logits.softmax(0)[token])


@pytest.mark.parametrize("rule", [Draw(temperature=0.9), Multinomial(0.9), Gumbel(0.9), Gumbel(0.0, 0.7)])
def test_who_else_is_in_the_call_changes_nothing(rule: Rule) -> None:
    logits = torch.randn(9, 11, generator=torch.Generator().manual_seed(3))
    made = rule(logits, [rows(4, 1), rows(2, 2), rows(3, 1)])
    together = (made.token_M, made.confidence_M)
    alone = [proposed(rule, logits[:4], 1), proposed(rule, logits[4:6], 2), proposed(rule, logits[6:], 1)]
    for found, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(found, torch.cat(parts))


def test_sampling_consumes_one_number_per_row_in_order() -> None:
    logits = torch.randn(6, 11, generator=torch.Generator().manual_seed(3))
    together = proposed(Draw(temperature=1.0), logits, seed=4)[0]
    one = rows(1, seed=4)
    assert torch.equal(together, torch.cat([Draw(temperature=1.0)(logits[i : i + 1], [one]).token_M for i in range(6)]))


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-53])
def test_the_ends_of_the_uniform_range_never_pick_a_token_of_mass_zero(
    uniform: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "rand", lambda count, **options: torch.full((count,), uniform, dtype=torch.float64))
    logits = torch.tensor([[0.0, 0.3, 0.1, 0.2, 0.0]])
    token, confidence = proposed(Draw(temperature=1.0, suppressed=(0, 4)), logits)
    assert token.tolist() == [1 if uniform == 0.0 else 3]
    assert confidence.item() > 0


def test_a_tiny_temperature_is_greedy_and_finite() -> None:
    token, confidence = proposed(Draw(temperature=1e-38), torch.tensor([[10.0, 30.0, 29.0]]))
    assert token.tolist() == [1]
    assert confidence.tolist() == [1.0]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.3, 1.0, 5.0]), st.sets(st.integers(0, 6), max_size=6))
def test_suppressed_ids_are_never_proposed(seed: int, temperature: float, suppressed: set[int]) -> None:
    logits = 10 * torch.randn(32, 7, generator=torch.Generator().manual_seed(seed))
    token, confidence = proposed(Draw(temperature=temperature, suppressed=tuple(suppressed)), logits, seed)
    assert not suppressed & set(token.tolist())
    assert ((confidence > 0) & (confidence <= 1)).all()


@pytest.mark.parametrize("rule", [Draw(), Greedy(), Gumbel(), Multinomial(0.0, top_k=1)])
def test_half_precision_logits_are_widened(rule: Rule) -> None:
    confidence = proposed(rule, torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.bfloat16))[1]
    expected = 1.0 if isinstance(rule, Multinomial) else math.exp(2) / (1 + math.e + math.exp(2))
    assert confidence.dtype == torch.float32
    assert confidence.item() == pytest.approx(expected, rel=1e-6)


def test_filters_keep_ties_at_the_kth_value_and_the_token_that_crosses_top_p() -> None:
    logits = torch.log(torch.tensor([[0.4, 0.2, 0.2, 0.15, 0.05]]))
    kept = [[i for i in range(5) if math.isfinite(filtered(logits, k, p)[0, i])] for k, p in CASES]
    assert kept == [[0], [0, 1, 2], [0, 1, 2], [0], [0, 1], [0, 1, 2, 3, 4], [0, 1]]


CASES = [(1, None), (2, None), (3, None), (None, 0.1), (None, 0.5), (0, 1.0), (3, 0.5)]


def test_the_left_neighbours_token_is_penalised_once_in_every_row_that_has_one() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.5], [0.0, 1.0, 0.5], [0.0, 1.0, 0.5]])
    made = Greedy(0.75)(logits, [rows(3, left=[-1, 1, 2])])
    token, confidence = made.token_M, made.confidence_M
    assert token.tolist() == [1, 2, 1]
    assert confidence[1].item() == pytest.approx(math.exp(0.5) / (1 + math.exp(0.25) + math.exp(0.5)))
    assert logits[1, 1] == 1.0


def test_credit_grows_for_the_best_token_and_fades() -> None:
    each = rows(1)
    rule = Gumbel(credit_alpha=0.7, boost_gamma=0.2, decay_beta=0.8)
    credit = [0.0, 0.0, 0.0]
    for step in range(4):
        logits = torch.tensor([[0.1, 0.2 + 0.1 * (step % 2), 0.25]])
        probability = logits.softmax(-1)[0].tolist()
        best = probability.index(max(probability))
        credit = [0.8 * value for value in credit]
        credit[best] += probability[best] ** 0.2
        fused = [z + 0.7 * math.log(1 + c) for z, c in zip(logits[0].tolist(), credit, strict=True)]
        made = rule(logits, [each])
        assert made.token_M.item() == fused.index(max(fused))
        assert made.confidence_M.item() == pytest.approx(max(torch.tensor(fused).softmax(0).tolist()), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_entropies_are_those_of_the_distribution_that_is_drawn_from(temperature: float) -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    made = Draw(temperature=temperature, suppressed=(2,), entropy=True)(logits, [rows(5)])
    for row, found in zip(logits.tolist(), made.columns()[2].tolist(), strict=True):
        weight = [0.0 if i == 2 else math.exp(z / (temperature or 1.0)) for i, z in enumerate(row)]
        probability = [w / sum(weight) for w in weight if w]
        assert found == pytest.approx(-sum(p * math.log(p) for p in probability))
