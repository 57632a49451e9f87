"""The rule of speculative sampling leaves the distribution as it is, with drawn drafts and with the best ones."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from difflm.decode.drawing import Draw
from difflm.decode.engine import Engine
from difflm.decode.policies.named import policy
from difflm.decode.ratio import ACCEPTING, DRAFTING, RESIDUAL, Ratio, drawn
from difflm.decode.request import SamplingParams
from difflm.decode.sampling import Proposed, Rows
from difflm.models.adapters import adapter_parameters, attach_adapter
from tests.decode.drafting import causal
from tests.decode.reference import DenseAttend
from tests.decode.test_drawing import keyed
from tests.decode.tiny import MASK

P = (0.5, 0.2, 0.15, 0.1, 0.05)
Q = (0.7, 0.05, 0.1, 0.15, 0.0)


def chi_square(seen: Mapping[Any, int], expected: Mapping[Any, float], *, least: float = 5.0) -> tuple[float, int]:
    """Return the statistic and its degrees of freedom; cells that expect little are taken together."""
    total = sum(seen.values())
    cells = [(seen.get(cell, 0), total * share) for cell, share in expected.items()]
    assert all(count == 0 for count, mean in cells if mean == 0.0), "something that cannot be was drawn"
    large = [(count, mean) for count, mean in cells if mean >= least]
    rest = total - sum(count for count, _ in large), total - sum(mean for _, mean in large)
    kept = [*large, rest] if rest[1] >= least else large
    return sum((count - mean) ** 2 / mean for count, mean in kept), len(kept) - 1


def unlikely(statistic: float, freedom: int) -> bool:
    """Return whether a chi-square statistic is beyond the 0.9999 quantile (Wilson and Hilferty)."""
    spread = 2.0 / (9.0 * freedom)
    return (statistic / freedom) ** (1 / 3) > 1.0 - spread + 3.719 * spread**0.5


def rows_of(seed: int, positions: Sequence[int], memory: dict[str, Tensor], drafts: Sequence[int] = ()) -> Rows:
    return keyed(tuple(positions), seed=seed, memory=memory, drafts=drafts)


def logits(*rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def played(rule: Ratio, p: Sequence[float], q: Sequence[float], count: int) -> tuple[list[int], list[int]]:
    """Return what was drafted from q and what the next forward said about it, once for each seed."""
    memories: list[dict[str, Tensor]] = [{} for _ in range(count)]
    asked = [rows_of(seed, (4, 5), memory) for seed, memory in enumerate(memories)]
    first: Proposed = rule(logits(p, q).repeat(count, 1), asked)
    drafts = first.token_M[1::2].tolist()
    checked = [
        rows_of(seed, (5, 6), memory, (draft,))
        for (seed, memory), draft in zip(enumerate(memories), drafts, strict=True)
    ]
    second = rule(logits(p, q).repeat(count, 1), checked)
    assert not any(memories), "what was drafted is verified once"
    return drafts, second.token_M[::2].tolist()


@pytest.mark.parametrize("best", [False, True])
def test_what_is_said_is_distributed_as_p(best: bool) -> None:
    count = 2000
    rule = Ratio(draw=Draw(temperature=1.0, keyed=True), best=best)
    drafts, said = played(rule, P, Q, count)
    given = {token: float(token == 0) for token in range(5)} if best else dict(enumerate(Q))
    assert not unlikely(*chi_square(Counter(said), dict(enumerate(P))))
    if best:
        assert set(drafts) == {0}
    else:
        assert not unlikely(*chi_square(Counter(drafts), given))
    accepted = sum(draft == token for draft, token in zip(drafts, said, strict=True)) / count
    share = sum(min(P[token], given[token]) for token in range(5))
    assert accepted == pytest.approx(share, abs=4 * (share * (1 - share) / count) ** 0.5)
    # The best draft as if it was drawn from q would be accepted by 0.5 / 0.7.
    assert not best or abs(accepted - 0.5 / 0.7) > 0.1


@pytest.mark.parametrize("best", [False, True])
def test_every_outcome_by_integration_over_the_uniform_number(best: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whether a draft is accepted, on a grid of the uniform number; what follows a rejection, exactly.
    steps, rejected = 400, 5  # a token that has no mass in either stands for "another one"
    rule = Ratio(draw=Draw(temperature=1.0, keyed=True), best=best)
    p, q = logits((*P, 0.0), (*P, 0.0)), torch.tensor([(*Q, 0.0)], dtype=torch.float64)
    given = [float(token == 0) for token in range(5)] if best else list(Q)
    point, residual = 0.0, list[float]()

    def remembering(weight_RV: Tensor, rows: Rows, numbers: range, *, stream: int) -> Tensor:
        if stream != RESIDUAL:
            return drawn(weight_RV, rows, numbers, stream=stream)
        residual[:] = weight_RV[0].tolist()
        return torch.tensor([rejected])

    monkeypatch.setattr("difflm.decode.ratio.uniform", lambda *_, **__: torch.tensor([point], dtype=torch.float64))
    monkeypatch.setattr("difflm.decode.ratio.drawn", remembering)
    found = [0.0] * 5
    for draft, weight in enumerate(given):
        for step in range(steps if weight else 0):
            point = (step + 0.5) / steps
            said = int(rule(p, [rows_of(3, (5, 6), {"drafting": q}, (draft,))]).token_M[0])
            if said != rejected:
                assert said == draft
                found[said] += weight / steps
                continue
            assert residual[draft] == 0.0, "another token stands in for the draft"
            for token in range(5):
                found[token] += weight / steps * residual[token] / sum(residual)
    assert found == pytest.approx(P, abs=2 / steps)


@pytest.mark.parametrize("best", [False, True])
def test_equal_distributions_accept_all_and_a_draft_that_cannot_be_is_never_accepted(best: bool) -> None:
    rule = Ratio(draw=Draw(temperature=1.0, keyed=True), best=best)
    drafts, said = played(rule, Q, Q, 200)
    assert best or drafts == said
    sure = (1.0, 0.0, 0.0, 0.0, 0.0)
    for p, q in (((0.0, 0.0, 0.4, 0.6, 0.0), (0.5, 0.5, 0.0, 0.0, 0.0)), ((0.0, 0.0, 0.0, 1.0, 0.0), sure)):
        drafts, said = played(rule, p, q, 100)
        assert set(drafts) <= {0, 1}
        assert set(said) <= {2, 3}
    drafts, said = played(rule, sure, sure, 20)
    assert set(said) == {0}


def test_each_use_of_a_position_has_noise_of_its_own() -> None:
    # Noise that draft and verification shared would accept drafts by what they are, and skew the text.
    rule = Ratio(draw=Draw(temperature=1.0, keyed=True))
    memory = {"drafting": torch.tensor([Q], dtype=torch.float64)}
    streams: list[tuple[int, int]] = []

    def listening(weight_RV: Tensor, rows: Rows, numbers: range, *, stream: int) -> Tensor:
        streams.extend((rows.positions[number], stream) for number in numbers)
        return drawn(weight_RV, rows, numbers, stream=stream)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("difflm.decode.ratio.drawn", listening)
        rule(logits(P, P, Q, Q), [rows_of(1, (5, 6, 7, 8), memory, (0,))])
    assert streams == [(5, 0), (6, 0), (5, RESIDUAL), (7, DRAFTING), (8, DRAFTING)]
    assert len({0, ACCEPTING, RESIDUAL, DRAFTING}) == 4
    assert memory["drafting"].shape == (2, 5)


def test_requests_of_one_call_keep_their_own_drafts() -> None:
    rule = Ratio(draw=Draw(temperature=1.0, keyed=True))
    alone, together = [], []
    for asked in (alone, together):
        for seed in range(6):
            memory = {"drafting": torch.tensor([Q], dtype=torch.float64)} if seed % 2 else {}
            asked.append(rows_of(seed, (5, 6, 7), memory, (seed % 3,) if seed % 2 else ()))
    given = logits(P, Q, P)
    expected = [token for rows in alone for token in rule(given, [rows]).token_M.tolist()]
    assert rule(given.repeat(6, 1), together).token_M.tolist() == expected
    for ours, theirs in zip(together, alone, strict=True):
        assert torch.equal(ours.memory["drafting"], theirs.memory["drafting"])


def test_the_rule_says_what_its_draw_does() -> None:
    rule = Ratio(draw=Draw(temperature=1.0, keyed=True, suppressed=(2,), presence_penalty=0.5))
    assert (rule.suppressed, rule.needs_history, rule.random, rule.entropy) == ((2,), True, True, False)
    assert not replace(rule, draw=Draw(temperature=1.0)).needs_history


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("draft", ["drawn", "best"])
def test_two_tokens_of_the_engine_are_distributed_as_the_models(draft: str, rank: int) -> None:
    # Three tokens: the first of the draft forward, the others verified. All probabilities are known.
    loaded, prompt, free = causal(12, unassigned=tuple(range(5, MASK))), [1, 2], range(5)
    if rank:
        drawing = torch.Generator().manual_seed(2)
        attach_adapter(loaded.model, (), generator=drawing, gate="noisy", draft_rank=rank)
        for each in adapter_parameters(loaded.model).values():
            each.data += torch.randn(each.shape, generator=drawing)
    text = torch.tensor([[*prompt, *each] for each in itertools.product(free, repeat=2)])
    visible = torch.ones(4, 4, dtype=torch.bool).tril()
    with torch.no_grad():
        hidden = loaded.model(text, torch.arange(4).expand_as(text), DenseAttend(visible))
        share_BLV = loaded.model.head(hidden)[:, 1:, :5].div(2.0).softmax(-1)
    expected: Counter[tuple[int, int]] = Counter()
    for row, share_LV in zip(text.tolist(), share_BLV.tolist(), strict=True):
        first, second = row[2:]
        for third in free:
            expected[second, third] += share_LV[0][first] * share_LV[1][second] * share_LV[2][third]
    engine = Engine(loaded, max_requests=1000)
    params = SamplingParams(
        max_new_tokens=3, policy=policy("verified", window=3, check="ratio", draft=draft, temperature=2.0)
    )
    found = engine.complete([(prompt, replace(params, seed=seed)) for seed in range(1000)])
    seen = Counter((each.tokens[1], each.tokens[2]) for each in found)
    assert not unlikely(*chi_square(seen, expected))
    counts = [each.drafts for each in found if each.drafts is not None]
    accepted = sum(each.accepted for each in counts) / sum(each.drafted for each in counts)
    assert 0.1 < accepted < 0.9, "both happen"
