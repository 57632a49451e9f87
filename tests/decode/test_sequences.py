"""The state machine of a request, driven by hand: no model, no tensors."""

from __future__ import annotations

from collections.abc import Sequence

from difflm.decode.events import Committed, Denoised, Forwards
from difflm.decode.policies.base import Proposal
from difflm.decode.policies.native import Native
from difflm.decode.request import Request
from difflm.decode.sequences import BlockDecoding, decoding_of
from difflm.diffusion.acceptance import Acceptance
from tests.decode.test_runner import request_of
from tests.decode.tiny import MASK, following


class Listed:
    """Takes what each call of `answer` listed."""

    needs_entropy = False

    def __call__(self, confidences: Sequence[float], entropies: Sequence[float]) -> list[int]:
        return [i for i, confidence in enumerate(confidences) if confidence == 0.5]


def answer(*tokens: int, accepted: tuple[int, ...] | None = None) -> Proposal:
    """Return a proposal of these tokens; `accepted` are indices (None: all)."""
    return Proposal(
        tokens=tokens, confidences=[0.5 if accepted is None or i in accepted else 0.25 for i in range(len(tokens))]
    )


def listed(**facts: object) -> Request:
    acceptance: Acceptance = Listed()
    return request_of(policy=Native(acceptance=acceptance), **facts)


def begun(request: Request) -> BlockDecoding:
    state = decoding_of(request)
    assert isinstance(state, BlockDecoding)
    assert state.begin() == []
    return state


def test_works_and_events_of_a_request_over_three_blocks() -> None:
    state = begun(listed(prompt=(1, 2, 3, 4, 5), max_new_tokens=8, logit_shift=True))

    work = following(state)
    assert (work.kind, work.start, work.tokens, work.num_clean, work.places) == ("prefill", 0, (1, 2, 3, 4), 4, ())
    assert state.absorb(work, Proposal()) == []

    work = following(state)
    assert (work.kind, work.start, work.tokens, work.num_clean) == ("denoise", 4, (5, MASK, MASK, MASK), 0)
    assert work.places == (5, 6, 7)
    assert [work.row_of(place) for place in work.places] == [0, 1, 2]
    (event,) = state.absorb(work, answer(7, 8, 9, accepted=(0, 2)))
    assert event == Denoised(
        request_id=0,
        block=1,
        positions=(5, 7),
        tokens=(7, 9),
        confidences=(0.5, 0.5),
        open_positions=(6,),
        num_masked=3,
    )

    work = following(state)
    assert (work.tokens, work.places) == ((5, 7, MASK, 9), (6,))
    denoised, committed = state.absorb(work, answer(6))
    assert denoised.request_id == 0
    assert committed == Committed(request_id=0, block=1, tokens=(7, 6, 9))

    work = following(state)
    assert (work.kind, work.start, work.tokens, work.num_clean) == ("denoise", 4, (5, 7, 6, 9) + (MASK,) * 4, 4)
    assert [work.row_of(place) for place in work.places] == [3, 4, 5, 6]
    state.absorb(work, answer(1, 1, 1, 1, accepted=(1,)))
    work = following(state)
    assert (work.start, work.num_clean) == (8, 0)
    assert [work.row_of(place) for place in work.places] == [-1, 1, 2]
    state.absorb(work, answer(1, 1, 1))

    work = following(state)
    assert work.places == (12,)  # the limit: positions 13..15 of the block stay masked
    assert state.outcome is None
    state.absorb(work, answer(2))
    assert state.outcome is not None
    assert state.outcome.tokens == [7, 6, 9, 1, 1, 1, 1, 2]
    assert state.outcome.finish_reason == "length"
    assert state.outcome.forwards == Forwards(prefill=1, denoise=5)


def test_without_fusing_the_commit_is_a_forward_of_its_own() -> None:
    state = begun(listed(prompt=(1,), max_new_tokens=7, fused=False))
    kinds: list[str] = []
    while state.outcome is None:
        work = following(state)
        kinds.append(work.kind)
        state.absorb(work, answer(*range(len(work.places))))
    assert kinds == ["denoise", "commit", "denoise"]
    assert state.outcome.forwards == Forwards(denoise=2, commit=1)


def test_a_decided_position_is_never_recognised_by_its_id() -> None:
    # A policy may decide the mask id as a token; the position is decided all the same.
    state = begun(listed(prompt=(1, 2), max_new_tokens=2))
    state.absorb(following(state), answer(MASK, 5, accepted=(0,)))
    assert following(state).places == (3,)
    state.absorb(following(state), answer(5))
    assert state.outcome is not None
    assert state.outcome.tokens == [MASK, 5]


def test_tokens_decided_together_with_an_eos_before_them_are_cut() -> None:
    state = begun(listed(prompt=(1,), max_new_tokens=9, eos_ids=frozenset({3})))
    events = state.absorb(following(state), answer(5, 3, 6))
    assert events[1:] == [Committed(request_id=0, block=0, tokens=(5,))]
    assert state.outcome is not None
    assert (state.outcome.tokens, state.outcome.num_tokens, state.outcome.finish_reason) == ([5], 2, "stop")
