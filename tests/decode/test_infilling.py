"""Gaps with text on both sides, against a slow decoder that recomputes everything."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from difflm.checkpoints.loading import LoadedModel
from difflm.decode.engine import Engine, generate
from difflm.decode.request import SamplingParams
from difflm.errors import RequestError
from tests.decode import reference
from tests.decode.tiny import MASK, VOCAB, scripted, tiny

EOS = 3


def slow(loaded: LoadedModel, row: list[int | None], size: int, threshold: float) -> tuple[list[int], int, float]:
    """Return the filled row, its forwards, and how near the closest decision was to another."""
    text = dict(enumerate(row))
    last = (len(row) - 1) // size
    forwards, margin = 0, math.inf
    for block in range(last + 1):
        first, stop = block * size, (block + 1) * size
        while still := [i for i in range(first, min(stop, len(row))) if text[i] is None]:
            noisy = [reference.FILLER] * first + [MASK if text.get(i) is None else text[i] for i in range(first, stop)]
            clean = [text[i] for i in range(first)] + [reference.FILLER] * size
            logits = reference.layout_logits(loaded, noisy, clean, size)  # type: ignore[arg-type]
            forwards += 1
            guess: dict[int, tuple[int, float]] = {}
            for i in still:
                raw = logits[i].tolist()
                raw[EOS] = -math.inf
                guess[i] = reference.propose_row(loaded, raw, 0.0, 0.0)
            confidence = {i: p for i, (_, p) in guess.items()}
            margin = min(margin, reference.choice_margin(confidence, threshold, 1))
            for i in reference.choose(confidence, threshold, 1):
                text[i] = guess[i][0]
    return [token for _, token in sorted(text.items()) if token is not None], forwards, margin


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**4),
    row=st.lists(st.one_of(st.none(), st.integers(0, MASK - 1)), min_size=1, max_size=14),
    size=st.sampled_from((1, 3, 4, 14)),
    threshold=st.sampled_from((0.0, 0.4, 1.0)),
    fused=st.booleans(),
)
def test_infilling_equals_recomputation(
    seed: int, row: list[int | None], size: int, threshold: float, fused: bool
) -> None:
    assume(None in row)
    loaded = tiny(seed, eos=(EOS,))
    expected, forwards, margin = slow(loaded, row, size, threshold)
    assume(margin > 1e-9)
    params = SamplingParams(block_size=size, threshold=threshold)
    engine = Engine(loaded, fused=fused)
    found = engine.infill(row, params)
    assert found.tokens == expected
    assert found.forwards.denoise == forwards
    assert found.num_tokens == row.count(None)
    assert not engine.runner.slots


def test_a_gap_at_the_end_is_a_completion() -> None:
    loaded = tiny(2)
    params = SamplingParams(max_new_tokens=6, block_size=4)
    (plain,) = generate(loaded, [[1, 2, 5]], params)
    assert Engine(loaded).infill([1, 2, 5, *[None] * 6], params).tokens == [1, 2, 5, *plain.tokens]


def test_given_tokens_are_prompt_and_not_answer_to_the_penalties() -> None:
    def row_of(position: int) -> list[float]:
        return [2.0 if token == 1 else 1.5 if token == 2 else 0.0 for token in range(VOCAB)]

    row = [None, 1, 0, 0, 1, 1, None]
    for options, expected in (({"presence_penalty": 1.0}, [1, 2]), ({"repetition_penalty": 2.0}, [2, 1])):
        params = SamplingParams(block_size=1, **options)  # type: ignore[arg-type]
        found = Engine(scripted(row_of)).infill(row, params)
        assert [found.tokens[0], found.tokens[-1]] == expected


def test_log_probabilities_are_those_of_the_gaps() -> None:
    row = [1, None, 5, None, None, 2]
    found = Engine(tiny(2)).infill(row, SamplingParams(block_size=4, logprobs=0))
    assert found.logprobs is not None
    assert [score.token for score in found.logprobs] == [found.tokens[i] for i in (1, 3, 4)]
    assert all(math.isfinite(score.logprob) for score in found.logprobs)


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        ([1, 2], {}, "no gap"),
        ([1, None, MASK], {}, "MASK token"),
        ([1, None, 99], {}, "not in the vocabulary"),
        ([1, None], {"editing_threshold": 0.5}, "editing_threshold: it cannot be used"),
        ([1, None], {"n": 2}, "n: it cannot be used"),
        ([1, None], {"stop": ["a"]}, "stop: it cannot be used"),
        ([1, None], {"stop_token_ids": [3]}, "stop_token_ids: it cannot be used"),
        ([1, None], {"min_tokens": 1}, "min_tokens: it cannot be used"),
        ([1, None], {"decoding": "next_token"}, "decoding: it cannot be used"),
    ],
)
def test_refusals(row: list[int | None], options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Engine(tiny(2)).infill(row, SamplingParams(**options))
