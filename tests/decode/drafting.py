"""Verified decoding for tests: models that can do it, drafts that a test chooses, the comparison with next-token."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from difflm.checkpoints.loading import LoadedModel
from difflm.decode.engine import Engine
from difflm.decode.events import Completion
from difflm.decode.policies.base import Proposal
from difflm.decode.policies.named import policy
from difflm.decode.policies.verified import Verified
from difflm.decode.request import SamplingParams
from difflm.decode.work import Work
from tests.decode.tiny import MASK, tiny

Drafter = Callable[[int, int], int]
"""Place, and the token that the model drafts there, to the token that is drafted instead."""


def causal(seed: int = 0, **facts: Any) -> LoadedModel:
    """Return a tiny model whose clean rows see earlier positions only."""
    return tiny(seed, clean="causal", **facts)


def pair(
    *, sampling: dict[str, Any] | None = None, drafting: dict[str, Any] | None = None, **common: Any
) -> tuple[SamplingParams, SamplingParams]:
    """Return the parameters of the same request, verified and one token per forward.

    Args:
        sampling: how a token is drawn; settings of either.
        drafting: settings of the policy alone.
        common: of the request.
    """
    sampling = sampling or {}
    verified = SamplingParams(policy=policy("verified", **sampling, **(drafting or {})), **common)
    return verified, SamplingParams(decoding="next_token", **sampling, **common)


def settings_of(params: SamplingParams) -> Verified:
    """Return the policy of verified parameters."""
    assert isinstance(params.policy, Verified)
    return params.policy


def redrafting(engine: Engine, drafter: Drafter) -> list[list[Work]]:
    """Let another one draft in an engine; return the list to which each forward's works are added."""
    run, seen = engine.runner.run, list[list[Work]]()

    def other(works: Sequence[Work]) -> list[Proposal]:
        seen.append(list(works))
        proposals = run(works)
        for number, work in enumerate(works):
            if work.request.drafting is None or not work.places:
                continue
            clean, said = len(work.drafts) + 1, list(proposals[number].tokens)
            for index in range(clean, len(said)):
                said[index] = drafter(work.places[index], said[index])
            proposals[number] = replace(proposals[number], tokens=said)
        return proposals

    engine.runner.run = other  # type: ignore[method-assign]
    return seen


def mixed(prompt: Sequence[int], text: Sequence[int], *, good: float = 0.8) -> Drafter:
    """Return a drafter of which most drafts are right, so that all numbers of accepted drafts occur.

    Args:
        prompt: before the text.
        text: the right tokens.
        good: share of the places that are drafted right.
    """

    def draft(place: int, drafted: int) -> int:
        index = place - len(prompt)
        right = random.Random(place * 1000 + len(text)).random() < good
        return text[index] if right and index < len(text) else drafted

    return draft


def oracle(prompt: Sequence[int], text: Sequence[int]) -> Drafter:
    """Return a drafter that is always right."""
    return mixed(prompt, text, good=1.0)


def wrong(prompt: Sequence[int], text: Sequence[int]) -> Drafter:
    """Return a drafter that never is."""

    def draft(place: int, drafted: int) -> int:
        index = place - len(prompt)
        return (text[index] + 1) % MASK if index < len(text) else drafted

    return draft


def answer(
    loaded: LoadedModel, prompt: Sequence[int], params: SamplingParams, drafter: Drafter | None = None, **options: Any
) -> Completion:
    """Return the completion of one prompt in an engine of its own."""
    engine = Engine(loaded, **options)
    if drafter is not None:
        redrafting(engine, drafter)
    return engine.generate([prompt], params)[0]


def check_same(found: Completion, expected: Completion) -> None:
    """Assert that two completions say the same, however many forwards they took."""
    assert found.tokens == expected.tokens
    assert found.text == expected.text
    assert (found.num_tokens, found.finish_reason, found.stopped_by) == (
        expected.num_tokens,
        expected.finish_reason,
        expected.stopped_by,
    )
    assert (found.logprobs is None) == (expected.logprobs is None)
    for ours, theirs in zip(found.logprobs or (), expected.logprobs or (), strict=True):
        assert ours.token == theirs.token
        assert ours.logprob == pytest.approx(theirs.logprob, rel=1e-4, abs=1e-5)
        assert [each for each, _ in ours.top] == [each for each, _ in theirs.top]
        assert [each for _, each in ours.top] == pytest.approx([each for _, each in theirs.top], rel=1e-4, abs=1e-5)


def check_equal(
    loaded: LoadedModel, prompt: Sequence[int], params: tuple[SamplingParams, SamplingParams], **options: Any
) -> Completion:
    """Assert that verified says what next-token decoding says: own drafts, and ones that are mostly right."""
    verified, plain = params
    expected = answer(loaded, prompt, plain)
    found = answer(loaded, prompt, verified, **options)
    check_same(found, expected)
    end = [expected.stopped_by] if isinstance(expected.stopped_by, int) else []
    again = answer(loaded, prompt, verified, mixed(prompt, expected.tokens + end), **options)
    check_same(again, expected)
    for each in (found, again):
        assert each.drafts is not None
        assert each.drafts.accepted <= min(each.drafts.drafted, each.num_tokens)
        assert each.drafts.tokens <= each.num_tokens
        forwards = each.forwards.denoise + each.forwards.commit
        assert forwards + each.drafts.accepted - each.num_tokens in (0, 1)  # an accepted end has no token behind it
    return again
