"""Limits are numbers that can be meant."""

from __future__ import annotations

import pytest

from difflm.errors import RequestError
from difflm.serving.limits import Access, Limits


@pytest.mark.parametrize("field", ["new_tokens", "answers", "body_bytes", "block_size"])
def test_counts_are_positive(field: str) -> None:
    with pytest.raises(RequestError, match=f"{field}: 0"):
        Limits(**{field: 0})


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_times_are_finite_and_positive(value: float) -> None:
    with pytest.raises(RequestError, match="answer_seconds"):
        Limits(answer_seconds=value)


def test_nothing_may_be_allowed_where_that_makes_sense() -> None:
    assert Limits(biases=0, post_steps=0).biases == 0


def test_keys_are_not_shown() -> None:
    assert "secret" not in repr(Access(keys=("secret",)))
