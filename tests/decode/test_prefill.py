"""Prompts are read in pieces beside running requests; a request can be cancelled in whatever state it is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.decode.engine import Engine
from difflm.decode.events import Finished
from difflm.decode.request import SamplingParams
from difflm.errors import RequestError
from tests.decode.tiny import MASK, certain, scripted, tiny

PROMPT = [1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2]


def rows_of(loaded: Any) -> list[list[int]]:
    """Return the rows of each forward."""
    return loaded.model.forward_rows


@pytest.mark.parametrize(
    ("room", "pieces"), [(1, [4, 4, 4]), (4, [4, 4, 4]), (7, [4, 4, 4]), (8, [8, 4]), (11, [8, 4]), (12, [12])]
)
def test_a_prompt_is_read_in_pieces_of_whole_blocks(room: int, pieces: list[int]) -> None:
    loaded = scripted(lambda position: certain(5))
    found = Engine(loaded, prefill_tokens=room).generate([PROMPT], SamplingParams(max_new_tokens=3))[0]
    assert [len(rows) for rows in rows_of(loaded)] == [*pieces, 4]
    assert [token for rows in rows_of(loaded)[:-1] for token in rows] == PROMPT[:12]
    assert (found.forwards.prefill, found.forwards.denoise) == (len(pieces), 1)


def test_next_token_decoding_reads_the_last_piece_with_its_first_token() -> None:
    loaded = scripted(lambda position: certain(5))
    params = SamplingParams(max_new_tokens=3, decoding="next_token")
    found = Engine(loaded, prefill_tokens=5).generate([PROMPT], params)[0]
    assert rows_of(loaded) == [PROMPT[:5], PROMPT[5:10], PROMPT[10:], [5], [5]]
    assert (found.forwards.prefill, found.forwards.denoise) == (2, 3)


def test_running_requests_go_on_while_prompts_are_read_and_all_prompts_share_the_room() -> None:
    loaded = scripted(lambda position: certain(5, 0.5))
    engine = Engine(loaded, prefill_tokens=8)
    engine.submit([1], SamplingParams(max_new_tokens=12, threshold=1.0))
    engine.step()
    for _ in range(2):
        engine.submit(PROMPT, SamplingParams(max_new_tokens=3, threshold=1.0))
    for _ in range(3):
        engine.step()
    block = [1, 5, MASK, MASK]
    assert rows_of(loaded)[1] == [*block, *PROMPT[:8]]  # the first prompt takes all the room
    assert rows_of(loaded)[2] == [1, 5, 5, MASK, *PROMPT[8:12], *PROMPT[:4]]  # its rest leaves some to the second
    open_block = [2, MASK, MASK, MASK]
    assert rows_of(loaded)[3] == [1, 5, 5, 5, *[MASK] * 4, *open_block, *PROMPT[4:12]]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.lists(st.lists(st.integers(0, MASK - 1), min_size=1, max_size=19), min_size=1, max_size=4),
    st.sampled_from((1, 3, 4, 8, 9)),
    st.sampled_from(("block", "causal")),
    st.booleans(),
    st.sampled_from(("block", "next_token")),
)
def test_pieces_do_not_change_answers(
    seed: int, prompts: list[list[int]], room: int, clean: Any, shift: bool, decoding: Any
) -> None:
    loaded = tiny(seed, clean=clean, logit_shift=shift, eos=(3,))
    params = SamplingParams(max_new_tokens=7, threshold=0.4, decoding=decoding)
    whole = Engine(loaded).generate(prompts, params)
    pieces = Engine(loaded, prefill_tokens=room).generate(prompts, params)
    assert [(each.tokens, each.forwards.denoise) for each in pieces] == [
        (each.tokens, each.forwards.denoise) for each in whole
    ]


@pytest.mark.parametrize("prefix_caching", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 6, 7])
def test_a_request_is_cancelled_in_every_state(steps: int, prefix_caching: bool) -> None:
    # 0: queued and never seen; 1, 2: its prompt is half read; 3, 4: in the middle of its first block; 6, 7: behind it
    engine = Engine(tiny(2), prefill_tokens=4, prefix_caching=prefix_caching, cache_bytes=64 * 256)
    params = SamplingParams(max_new_tokens=9, threshold=1.0)
    expected = Engine(tiny(2)).generate([PROMPT, [7]], params)
    other = engine.submit([7], params)
    unlucky = engine.submit(PROMPT, params)
    events = [event for _ in range(steps) for event in engine.step()]
    if steps:
        assert unlucky in engine.scheduler.running
    engine.cancel(unlucky)
    engine.cancel(unlucky)  # twice does no harm
    assert unlucky not in engine.runner.slots
    assert unlucky not in engine.scheduler.running
    assert engine.cache_use.running == (12 if steps else 0)
    after = engine.submit(PROMPT, params)  # what it left behind is right
    while len(done := [event for event in events if isinstance(event, Finished)]) < 2:
        events += engine.step()
    assert {event.request_id: event.completion.tokens for event in done} == {
        other: expected[1].tokens,
        after: expected[0].tokens,
    }
    reused = next(event.completion.reused_tokens for event in done if event.request_id == after)
    assert reused == (min(4 * steps, 12) if prefix_caching else 0)
    assert engine.cache_use.running == 0
    assert not engine.runner.slots


def test_a_request_that_waits_for_room_is_cancelled() -> None:
    engine = Engine(tiny(2), cache_bytes=16 * 256)
    params = SamplingParams(max_new_tokens=8)
    first, second, third = (engine.submit([1, 2, 3], params) for _ in range(3))
    engine.step()
    assert list(engine.scheduler.running) == [first]
    engine.cancel(second)
    finished = [event.request_id for _ in range(30) for event in engine.step() if isinstance(event, Finished)]
    assert finished == [first, third]


def test_the_blocks_that_make_room_for_their_own_heir_are_taken_over_first() -> None:
    # 20 entries: the first request leaves 16 of them, the second needs 20.
    loaded = tiny(6)
    engine = Engine(loaded, cache_bytes=20 * 256, prefix_caching=True)
    long, short = SamplingParams(max_new_tokens=7, threshold=1.0), SamplingParams(max_new_tokens=4, threshold=1.0)
    first = engine.generate([PROMPT], short)[0]
    heir = engine.generate([PROMPT], long)[0]
    assert heir.reused_tokens == 12
    assert heir.tokens == Engine(loaded).generate([PROMPT], long)[0].tokens
    assert first.tokens == Engine(loaded).generate([PROMPT], short)[0].tokens
    assert engine.cache_use.evicted == 16


def test_no_room_to_read_is_refused() -> None:
    with pytest.raises(RequestError, match="prefill_tokens: 0 cannot be used; give an integer >= 1"):
        Engine(tiny(1), prefill_tokens=0)
