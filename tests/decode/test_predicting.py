"""Proposals do not depend on how many rows the head takes at once, nor on where a request stands among others."""

from __future__ import annotations

import pytest
import torch

from difflm.decode import predicting
from difflm.decode.drawing import Draw
from difflm.decode.policies.base import Proposal
from difflm.decode.predicting import Slot, predict
from difflm.decode.work import Work
from tests.decode.test_runner import request_of
from tests.decode.tiny import MASK, VOCAB, tiny


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_the_head_takes_so_many_rows_at_once_and_the_answers_stay(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(3).model
    hidden = torch.randn(16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rules = (Draw(suppressed=(MASK,)), Draw(suppressed=(MASK,), entropy=True), Draw(suppressed=(MASK,)))
    asked = ((0, 2), (1, 2, 3), (3,))
    works = [
        Work(
            request=request_of(id=number, rule=rule, logprobs=2 if number == 2 else None),
            kind="denoise",
            start=0,
            tokens=(MASK,) * 4,
            num_clean=0,
            places=places,
        )
        for number, (rule, places) in enumerate(zip(rules, asked, strict=True))
    ]
    seen: list[int] = []
    model.head.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    monkeypatch.setattr(predicting, "LOGITS_BYTES", 4 * VOCAB * rows)
    slots = [Slot(torch.Generator()) for _ in works]
    with torch.inference_mode():
        found = predict(model, works, slots, [0, 4, 8], hidden)
    assert seen == {1: [2, 1, 3], 3: [3, 3], 100: [3, 3]}[rows]
    for number, (proposal, places) in enumerate(zip(found, asked, strict=True)):
        logits = hidden[[4 * number + place for place in places]] @ model.head.weight.T
        logits[:, MASK] = -torch.inf
        confidence, token = logits.softmax(-1).max(-1)
        assert proposal.tokens == token.tolist()
        assert proposal.confidences == pytest.approx(confidence.tolist())
        assert bool(proposal.entropies) == (number == 1)
        assert [score.token for score in proposal.scores] == (token.tolist() if number == 2 else [])


def test_a_forward_that_asks_for_nothing_does_not_reach_the_head() -> None:
    model = tiny(3).model
    model.head.register_forward_pre_hook(lambda module, inputs: pytest.fail("the head was called"))
    work = Work(request=request_of(), kind="prefill", start=0, tokens=(1, 2, 3, 4), num_clean=4)
    assert predict(model, [work], [Slot(torch.Generator())], [0], torch.zeros(4, 16)) == [Proposal()]
