"""Bias, penalties, filters and barred ends against loops over the vocabulary."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.decode.drawing import Draw, gumbel, inverse_transform, uniform
from difflm.decode.sampling import Rows, logprob_columns
from difflm.diffusion.noise import RowNoise

VOCAB = 6


def loops(row: list[float], prompt: list[int], generated: list[int], barred: set[int], **o: Any) -> list[float]:
    """Return the distribution of one row, token by token."""
    row = [-math.inf if i in o["suppressed"] else z + dict(o["logit_bias"]).get(i, 0.0) for i, z in enumerate(row)]
    for i in range(VOCAB):
        if i in barred:
            row[i] = -math.inf
        if i in prompt + generated:
            row[i] = row[i] / o["repetition_penalty"] if row[i] > 0 else row[i] * o["repetition_penalty"]
        count = generated.count(i)
        row[i] -= (o["presence_penalty"] if count else 0.0) + o["frequency_penalty"] * count
    heat = o["temperature"] or 1.0
    weight = [math.exp(z / heat) for z in row]
    if o["temperature"]:
        weight = [w if w >= o["min_p"] * max(weight) else 0.0 for w in weight]
        if o["top_k"]:
            least = sorted(weight, reverse=True)[o["top_k"] - 1]
            weight = [w if w >= least else 0.0 for w in weight]
        order, total = sorted(range(VOCAB), key=lambda i: -weight[i]), sum(weight)
        kept: set[int] = set()
        for i in order:
            if not kept or sum(weight[j] for j in kept) <= o["top_p"] * total:
                kept.add(i)
        weight = [w if i in kept else 0.0 for i, w in enumerate(weight)]
    return [w / sum(weight) for w in weight]


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from((0.0, 0.7, 1.5)),
    top_k=st.sampled_from((0, 1, 3, 9)),
    top_p=st.sampled_from((0.3, 0.8, 1.0)),
    min_p=st.sampled_from((0.0, 0.2)),
    repetition=st.sampled_from((1.0, 1.7)),
    presence=st.sampled_from((0.0, 0.4)),
    frequency=st.sampled_from((0.0, -0.3)),
    prompt=st.lists(st.integers(0, VOCAB - 1), max_size=4),
    generated=st.lists(st.integers(0, VOCAB - 1), max_size=4),
    barred=st.booleans(),
)
def test_the_processed_distribution(
    seed: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition: float,
    presence: float,
    frequency: float,
    prompt: list[int],
    generated: list[int],
    barred: bool,
) -> None:
    options: dict[str, Any] = {
        "temperature": temperature,
        "top_k": min(top_k, VOCAB),
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition,
        "presence_penalty": presence,
        "frequency_penalty": frequency,
        "logit_bias": ((1, 0.5), (4, -2.0)),
        "suppressed": (5,),
    }
    logits = 2 * torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = Rows(
        places=(0, 1),
        block_length=2,
        left=(-1, -1),
        generator=torch.Generator().manual_seed(seed),
        prompt=prompt,
        generated=generated,
        barred=(1,) if barred else (),
        ends=(0, 2),
    )
    kept = logits.clone()
    rule = Draw(**options, entropy=True)
    made = rule(logits, [rows])
    assert torch.equal(logits, kept)
    for i, row in enumerate(logits.tolist()):
        expected = loops(row, prompt, generated, {0, 2} if barred and i == 1 else set(), **options)
        token = int(made.token_M[i])
        assert expected[token] > 0
        assert made.confidence_M[i].item() == pytest.approx(expected[token], rel=1e-9)
        entropy = -sum(p * math.log(p) for p in expected if p)
        assert made.columns()[2][i].item() == pytest.approx(entropy, abs=1e-9)
        if not temperature:
            assert expected[token] == max(expected)


def test_the_uniform_number_picks_the_token_whose_share_it_falls_into() -> None:
    probability = torch.tensor([[0.25, 0.5, 0.25]]).expand(4, 3)
    picked = inverse_transform(probability, torch.tensor([0.0, 0.2, 0.3, 0.8], dtype=torch.float64))
    assert picked.tolist() == [0, 0, 1, 2]


def test_logprobs_are_those_of_the_raw_logits_without_suppressed_ids() -> None:
    logits = torch.tensor([[1.0, 2.0, 9.0, 0.5]], dtype=torch.float64)
    found = logprob_columns(logits, torch.tensor([0]), 2, (2,))[:, 0].tolist()
    total = math.log(math.exp(1.0) + math.exp(2.0) + math.exp(0.5))
    assert found == pytest.approx([1.0 - total, 1, 2.0 - total, 0, 1.0 - total])
    every = logprob_columns(logits, torch.tensor([0]), 20, (2,))[:, 0]
    assert every[1::2].tolist() == [1, 0, 3], "a suppressed id, whose logarithm is minus infinity, is none of the best"
    assert bool(every.isfinite().all())


def keyed(positions: tuple[int, ...], *, seed: int = 7, **facts: Any) -> Rows:
    return Rows(
        places=(0,) * len(positions),
        block_length=1,
        left=(-1,) * len(positions),
        generator=torch.Generator(),
        seed=seed,
        positions=positions,
        **facts,
    )


def test_keyed_draws_are_those_of_seed_and_position_whatever_stands_beside_them() -> None:
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rule = Draw(temperature=0.8, top_k=4, suppressed=(5,), keyed=True)
    positions = (3, 4, 9, 30, 31, 2)
    together = rule(logits, [keyed(positions[:2]), keyed(positions[2:])]).token_M.tolist()
    options: dict[str, Any] = {"suppressed": (5,), "logit_bias": (), "temperature": 0.8, "top_k": 4, "top_p": 1.0}
    options |= {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    for row, position, token in zip(logits, positions, together, strict=True):
        assert rule(row[None], [keyed((position,))]).token_M.tolist() == [token]
        chance = loops(row.tolist(), [], [], set(), **options)
        noise = torch.rand(VOCAB, dtype=torch.float64, generator=RowNoise(7).generator(position, 0)).tolist()
        scores = [math.log(p) - math.log(-math.log(u)) if p else -math.inf for p, u in zip(chance, noise, strict=True)]
        assert token == scores.index(max(scores))
    flat = torch.zeros(1, 1000)
    drawn = {
        (seed, position): int(Draw(temperature=1.0, keyed=True)(flat, [keyed((position,), seed=seed)]).token_M)
        for seed in range(3)
        for position in range(3)
    }
    assert len(set(drawn.values())) == 9, "every seed and every position has noise of its own"


def test_noise_of_a_stream_is_not_that_of_another_and_never_infinite() -> None:
    rows = keyed((3, 4))
    streams = [uniform(rows, 1, 50, stream=stream) for stream in range(4)]
    assert len({tuple(each.tolist()) for each in streams}) == 4
    assert torch.equal(gumbel([rows], 50, range(1, 2)), -torch.log(-torch.log(streams[0]))[None])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *_, **__: torch.zeros(3, dtype=torch.float64))
        assert bool(gumbel([rows], 3).isfinite().all())


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_row_behind_drafts_is_penalised_for_them_too(temperature: float) -> None:
    logits = 2 * torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    options: dict[str, Any] = {"repetition_penalty": 1.5, "presence_penalty": 0.6, "frequency_penalty": 0.4}
    rule = Draw(temperature=temperature, keyed=True, **options)
    options |= {"suppressed": (), "logit_bias": (), "temperature": temperature, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    prompt, generated, drafts = [0], [1, 1, 2], (3, 1, 4)
    rows = keyed((4, 5, 6, 7, 8), prompt=prompt, generated=generated, drafts=drafts)
    made = rule(logits, [rows])
    for number, row in enumerate(logits.tolist()):
        expected = loops(row, prompt, [*generated, *drafts[:number]], set(), **options)
        token = int(made.token_M[number])
        assert made.confidence_M[number].item() == pytest.approx(expected[token])
        assert temperature or expected[token] == max(expected)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("penalty", [5e-324, 1e-30, 10.0])
def test_any_penalty_leaves_a_distribution(temperature: float, penalty: float) -> None:
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(1))
    logits[0, 1], logits[1, 1] = 3.0, -3.0
    rows = keyed((4, 5), prompt=[0, 1, 3], generated=[2], barred=(0, 1), ends=(0,))
    rule = Draw(temperature=temperature, keyed=True, repetition_penalty=penalty, suppressed=(3,))
    processed = rule.processed(logits, [rows])
    assert not bool(processed.isnan().any())
    assert bool((processed[:, [0, 3]] == -torch.inf).all())
    made = rule(logits, [rows])
    assert bool(made.confidence_M.isfinite().all())
    assert not {0, 3} & set(made.token_M.tolist())
