"""What the demo's table is made of."""

from __future__ import annotations

from typing import Any

import pytest

from demo import evaluate
from difflm import Completion, SamplingParams
from difflm.decode.events import Forwards


def test_items_are_decoded_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of answers that are decoded together are those of all, and their sum is no wall time."""
    calls: list[list[str]] = []

    class Alone:
        def __init__(self, loaded: object) -> None:
            del loaded

        def generate(self, prompts: list[str], params: SamplingParams) -> list[Completion]:
            calls.append(prompts)
            assert params.max_new_tokens == evaluate.MAX_NEW_TOKENS
            made = Completion(
                tokens=[1, 2],
                text="{}",
                forwards=Forwards(prefill=1, denoise=2),
                finish_reason="stop",
                num_tokens=3,
                seconds=0.5,
            )
            return [made for _ in prompts]

    monkeypatch.setattr(evaluate, "Engine", Alone)
    loaded: Any = None
    row = evaluate.measure("way", loaded, "fresh", 3, SamplingParams())
    assert [len(each) for each in calls] == [1, 1, 1, 1], "the first is not timed"
    assert calls[0] == calls[1]
    assert (row.tokens, row.seconds, row.prefill, row.tokens_per_second) == (9, 1.5, 3, 6.0)
