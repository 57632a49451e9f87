"""Proposals do not depend on how many rows the head takes at once, nor on where a request stands among others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch

from difflm.decode import predicting
from difflm.decode.drawing import Draw
from difflm.decode.policies.base import Proposal
from difflm.decode.predicting import Slot, predict
from difflm.decode.sampling import Proposed, Rows, chosen
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


@dataclass(frozen=True, eq=False)
class Listening:
    """A rule that keeps the rows it is asked about."""

    asked: list[Rows] = field(default_factory=list[Rows])
    random: bool = False
    suppressed: tuple[int, ...] = ()
    needs_history: bool = True
    entropy: bool = False

    def __call__(self, logits_MV: torch.Tensor, rows: Sequence[Rows]) -> Proposed:
        self.asked.extend(rows)
        return chosen(logits_MV.softmax(-1), logits_MV.argmax(-1))


def test_rows_of_drafts_know_their_places_and_which_must_not_end() -> None:
    rule = Listening()
    request = request_of(
        rule=rule, prompt=(1, 2), min_tokens=4, eos_ids=frozenset({3, 5}), block_size=1, logit_shift=True, seed=9
    )
    work = Work(
        request=request,
        kind="denoise",
        start=3,
        tokens=(4, 6, 7, MASK, MASK),
        num_clean=3,
        places=(4, 5, 6, 7, 8),
        drafts=(6, 7),
        generated=(8, 4),
    )
    slot = Slot(torch.Generator())
    predict(tiny(3).model, [work], [slot], [0], torch.zeros(5, 16, dtype=torch.float64))
    (rows,) = rule.asked
    assert (rows.drafts, rows.positions, rows.seed) == ((6, 7), (4, 5, 6, 7, 8), 9)
    assert (rows.prompt, rows.generated) == ((1, 2), (8, 4))
    # Positions 2..5 hold the first four tokens.
    assert (rows.barred, rows.ends) == ([0, 1], [3, 5])
    assert rows.memory is slot.memory
