"""Bias, penalties, filters and barred ends against loops over the vocabulary."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.decode.drawing import Draw, inverse_transform
from difflm.decode.sampling import Rows, logprob_columns

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
