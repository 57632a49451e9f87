"""Left-to-right decoding, with drafts and without: driven by hand, its cache, its company, its ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.checkpoints.loading import LoadedModel
from difflm.decode.engine import Engine
from difflm.decode.events import (
    Committed,
    Completion,
    Denoised,
    DraftCounts,
    Drafted,
    Finished,
    Forwards,
    TokenLogprob,
)
from difflm.decode.left_to_right import LeftToRightDecoding
from difflm.decode.policies.base import Proposal
from difflm.decode.policies.named import policy
from difflm.decode.policies.verified import Verified
from difflm.decode.request import SamplingParams
from difflm.decode.runner import Runner
from difflm.decode.sequences import decoding_of
from difflm.decode.stopping import StopStrings
from difflm.decode.work import Work
from tests.decode.drafting import answer, causal, check_same, mixed, oracle, pair, redrafting
from tests.decode.test_options import lettered
from tests.decode.test_runner import request_of
from tests.decode.test_sequences import answer as proposal_of
from tests.decode.tiny import MASK, following


def test_next_token_decoding_reads_the_prompt_and_counts_every_token_once() -> None:
    state = decoding_of(
        request_of(prompt=(1, 2, 3), policy=None, mask_id=None, max_new_tokens=2, logit_shift=True, block_size=1)
    )
    assert isinstance(state, LeftToRightDecoding)
    work = following(state)
    assert (work.kind, work.tokens, work.num_clean, work.places) == ("denoise", (1, 2, 3), 3, (3,))
    assert work.row_of(3) == 2
    assert len(state.absorb(work, proposal_of(7))) == 2
    work = following(state)
    assert (work.start, work.tokens, work.places, work.row_of(4)) == (3, (7,), (4,), 0)
    state.absorb(work, proposal_of(8))
    assert state.outcome is not None
    assert state.outcome.tokens == [7, 8]
    assert state.outcome.forwards == Forwards(denoise=2)
    assert state.outcome.drafts is None


def verified_state(**facts: Any) -> LeftToRightDecoding:
    """Return a request of five places per window that drafts in forwards of their own."""
    drafting = Verified(window=5, start=5, fused=facts.pop("drafts_fused", False), fallback=False)
    common: dict[str, Any] = {"policy": None, "logit_shift": True, "noisy_shift": False, "clean_causal": True}
    request = request_of(prompt=(1, 2, 3), block_size=1, drafting=drafting, **{**common, **facts})
    state = decoding_of(request)
    assert isinstance(state, LeftToRightDecoding)
    return state


@pytest.mark.parametrize("shift", [False, True])
def test_rows_places_and_events_of_drafting_and_verifying(shift: bool) -> None:
    state = verified_state(noisy_shift=shift)
    assert state.begin() == []
    work = following(state)
    # Unshifted, a MASK row more: that of the place which the last token's own row predicts.
    masks = (MASK,) * (4 if shift else 5)
    assert (work.kind, work.start, work.tokens, work.num_clean) == ("denoise", 0, (1, 2, 3, *masks), 3)
    assert (work.places, work.drafts, work.reads) == ((3, 4, 5, 6, 7), (), 3)
    assert [work.row_of(place) for place in work.places] == ([2, 3, 4, 5, 6] if shift else [2, 4, 5, 6, 7])
    said = Proposal(tokens=(4, 5, 6, 7, 8), confidences=(0.9, 0.8, 0.7, 0.6, 0.5))
    denoised, committed, drafted = state.absorb(work, said)
    assert denoised == Denoised(
        request_id=0, block=3, positions=(3,), tokens=(4,), confidences=(0.9,), open_positions=(), num_masked=1
    )
    assert committed == Committed(request_id=0, block=3, tokens=(4,))
    assert drafted == Drafted(
        request_id=0, positions=(4, 5, 6, 7), tokens=(5, 6, 7, 8), confidences=(0.8, 0.7, 0.6, 0.5)
    )
    assert (state.tokens, state.committed, state.drafts) == ([1, 2, 3, 4], 3, [5, 6, 7, 8])

    work = following(state)
    assert (work.kind, work.start, work.tokens, work.num_clean) == ("commit", 3, (4, 5, 6, 7, 8), 5)
    assert (work.places, work.drafts, work.reads) == ((4, 5, 6, 7, 8), (5, 6, 7, 8), 0)
    assert [work.row_of(place) for place in work.places] == [0, 1, 2, 3, 4]
    said = Proposal(tokens=(5, 6, 9, 7, 8), confidences=(0.9, 0.8, 0.7, 0.6, 0.5))
    denoised, committed = state.absorb(work, said)
    assert isinstance(denoised, Denoised)
    assert (denoised.positions, denoised.tokens, denoised.confidences) == ((4, 5, 6), (5, 6, 9), (0.9, 0.8, 0.7))
    assert (denoised.block, denoised.num_masked) == (4, 3)
    assert isinstance(committed, Committed)
    assert committed.tokens == (5, 6, 9)
    # Of the drafts 5 and 6 are cached; what replaced 7 is not.
    assert (state.tokens, state.committed, state.drafts) == ([1, 2, 3, 4, 5, 6, 9], 6, [])
    assert state.counts == DraftCounts(cycles=1, tokens=4, verified_at=(1, 1, 1, 1), accepted_at=(1, 1, 0, 0))
    assert state.forwards == Forwards(denoise=1, commit=1)
    assert (following(state).start, following(state).kind) == (6, "denoise")


def test_a_fused_forward_drafts_behind_its_drafts_and_they_fall_with_them() -> None:
    state = verified_state(drafts_fused=True)
    state.absorb(following(state), proposal_of(4, 5, 6, 7, 8))
    work = following(state)
    assert (work.kind, work.num_clean, work.tokens) == ("denoise", 5, (4, 5, 6, 7, 8, *[MASK] * 5))
    assert work.places == (4, 5, 6, 7, 8, 9, 10, 11, 12)
    assert [work.row_of(place) for place in work.places] == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    state.absorb(work, proposal_of(5, 6, 7, 8, 9, 1, 2, 3, 4))
    assert (state.tokens[3:], state.committed, state.drafts) == ([4, 5, 6, 7, 8, 9], 8, [1, 2, 3, 4])
    work = following(state)
    assert (work.start, work.tokens[:5], work.drafts) == (8, (9, 1, 2, 3, 4), (1, 2, 3, 4))
    events = state.absorb(work, proposal_of(1, 0, 3, 4, 5, 6, 7, 8, 9))
    assert (state.tokens[-3:], state.committed, state.drafts) == ([9, 1, 0], 10, [])
    assert not any(isinstance(event, Drafted) for event in events)


def test_the_last_draft_is_verified_without_a_row_of_its_own() -> None:
    state = verified_state(max_new_tokens=4)
    work = following(state)
    assert work.places == (3, 4, 5, 6)
    state.absorb(work, proposal_of(4, 5, 6, 7))
    work = following(state)
    assert (work.tokens, work.drafts, work.places) == ((4, 5, 6), (5, 6), (4, 5, 6))
    state.absorb(work, proposal_of(5, 6, 7))
    assert state.outcome is not None
    assert state.outcome.tokens == [4, 5, 6, 7]
    assert state.outcome.drafts == DraftCounts(cycles=1, tokens=4, verified_at=(1, 1, 1), accepted_at=(1, 1, 1))


def test_what_stands_behind_an_end_is_neither_written_nor_counted() -> None:
    stops = StopStrings(("g",), lambda tokens: "".join(chr(ord("a") + token) for token in tokens))
    state = verified_state(stops=stops, logprobs=0)
    state.absorb(following(state), proposal_of(4, 5, 6, 7, 8))
    scores = [TokenLogprob(token=token, logprob=-1.0) for token in (5, 6, 7, 8, 9)]
    said = Proposal(tokens=(5, 6, 7, 8, 9), confidences=(0.5,) * 5, scores=scores)
    events = state.absorb(following(state), said)
    assert state.outcome is not None
    assert (state.outcome.tokens, state.outcome.num_tokens, state.outcome.stopped_by) == ([4, 5], 3, "g")
    assert state.outcome.drafts == DraftCounts(cycles=1, tokens=3, verified_at=(1, 1, 1, 1), accepted_at=(1, 1, 0, 0))
    denoised, committed = events
    assert isinstance(denoised, Denoised)
    assert denoised.tokens == (5, 6)
    assert isinstance(committed, Committed)
    assert committed.tokens == (5,)


def test_nothing_is_drafted_behind_an_eos_and_its_row_is_left_out() -> None:
    state = verified_state(eos_ids=frozenset({6}), drafts_fused=True)
    drafted = state.absorb(following(state), proposal_of(4, 5, 6, 7, 6))[-1]
    assert isinstance(drafted, Drafted)
    assert (drafted.positions, drafted.tokens, len(drafted.confidences)) == ((4, 5), (5, 6), 2)
    work = following(state)
    assert (work.kind, work.tokens, work.drafts, work.places) == ("commit", (4, 5), (5,), (4, 5))
    state.absorb(work, proposal_of(5, 6))
    assert state.outcome is not None
    assert (state.outcome.tokens, state.outcome.num_tokens, state.outcome.stopped_by) == ([4, 5], 3, 6)
    assert state.outcome.drafts == DraftCounts(cycles=1, tokens=3, verified_at=(1, 1), accepted_at=(1, 1))


def test_another_token_than_a_drafted_eos_goes_on() -> None:
    state = verified_state(eos_ids=frozenset({6}))
    state.absorb(following(state), proposal_of(4, 5, 6, 7, 8))
    state.absorb(following(state), proposal_of(5, 9))
    assert (state.outcome, state.tokens[3:], state.committed, state.drafts) == (None, [4, 5, 9], 5, [])


def test_pieces_of_the_prompt_are_read_before_anything_is_drafted() -> None:
    state = verified_state()
    assert state.next_work(0) is None
    piece = state.next_work(2)
    assert piece is not None
    assert (piece.kind, piece.tokens, piece.num_clean, piece.places, piece.reads) == ("prefill", (1, 2), 2, (), 2)
    assert state.absorb(piece, Proposal()) == []
    assert state.committed == 2
    work = state.next_work(1)
    assert work is not None
    assert (work.start, work.tokens[0], work.num_clean, work.reads, len(work.places)) == (2, 3, 1, 1, 5)
    assert state.pace is not None
    assert state.pace.spent == 0.0, "reading is not drafting"


def test_only_penalties_ask_for_what_was_written() -> None:
    state = verified_state()
    state.absorb(following(state), proposal_of(4, 5, 6, 7, 8))
    assert following(state).generated == ()
    state = verified_state(rule=policy("verified", presence_penalty=1.0).rule(()))
    state.absorb(following(state), proposal_of(4, 5, 6, 7, 8))
    assert following(state).generated == (4,), "drafts are told apart from it"


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("fused", [True, False])
def test_the_cache_is_that_of_a_causal_prefill_after_every_forward(fused: bool, shift: bool) -> None:
    loaded = causal(4, logit_shift=shift, block_size=6, noisy="causal" if fused else "bidirectional")
    verified, plain = pair(drafting={"window": 6, "fused": fused, "fallback": False}, max_new_tokens=24)
    prompt = [1, 2, 4, 5, 6]
    engine = Engine(loaded, prefill_tokens=3)
    redrafting(engine, mixed(prompt, answer(loaded, prompt, plain).tokens, good=0.6))
    engine.submit([7], SamplingParams(max_new_tokens=3, decoding="next_token"))  # it owns the first entries
    engine.submit(prompt, verified)
    rejections = checked = 0
    while engine.step():
        for running in engine.scheduler.running.values():
            state = running.decoding
            if not isinstance(state, LeftToRightDecoding) or state.request.prompt != tuple(prompt):
                continue
            row = tuple(state.tokens[: state.committed])
            fresh = Runner(loaded.model, max_tokens=64)
            fresh.run([Work(request=state.request, kind="prefill", start=0, tokens=row, num_clean=len(row))])
            pool, own = engine.runner.pool, slice(state.base, state.base + len(row))
            for ours, theirs in ((pool.key, fresh.pool.key), (pool.value, fresh.pool.value)):
                assert torch.allclose(ours[:, :, own], theirs[:, :, : len(row)], rtol=0.0, atol=1e-12)
            checked += 1
            rejections = state.counts.drafted - state.counts.accepted
    assert checked > 5
    assert rejections > 0, "something was dropped from the cache"


def told(engine: Engine, prompt: list[int], params: SamplingParams) -> tuple[list[int], Completion]:
    """Return the tokens that a stream's events told, and its completion."""
    events = list(engine.stream(prompt, params))
    assert isinstance(events[-1], Finished)
    tokens = [token for event in events if isinstance(event, Committed) for token in event.tokens]
    return tokens, events[-1].completion


@settings(max_examples=25)
@given(
    st.integers(0, 10**4),
    st.lists(st.text("abcdefgh", min_size=1, max_size=4), max_size=2),
    st.booleans(),
    st.integers(1, 16),
)
def test_streamed_tokens_join_to_the_completion_and_none_is_told_before_it_is_final(
    seed: int, stop: list[str], fused: bool, new: int
) -> None:
    loaded = lettered(causal(seed, eos=(3,), block_size=5))
    verified, plain = pair(drafting={"fused": fused, "fallback": False}, max_new_tokens=new, stop=stop)
    tokens, expected = told(Engine(loaded), [1, 2], plain)
    assert tokens == expected.tokens
    for drafter in (mixed, oracle):
        engine = Engine(loaded)
        redrafting(engine, drafter([1, 2], expected.tokens))
        tokens, found = told(engine, [1, 2], verified)
        check_same(found, expected)
        assert tokens == found.tokens


Asked = tuple[list[int], SamplingParams, int]
"""Prompt, parameters, and the step at which it is submitted."""


@st.composite
def crowds(draw: st.DrawFn) -> tuple[LoadedModel, list[Asked]]:
    """Return a model, requests that begin alike, verified or otherwise."""
    loaded = causal(
        draw(st.integers(0, 10_000)),
        block_size=4,
        logit_shift=draw(st.booleans()),
        noisy=draw(st.sampled_from(("bidirectional", "causal"))),
        eos=(3,),
    )
    stem, requests = [1, 2, 4, 5, 6, 7], list[Asked]()
    for number in range(draw(st.integers(2, 6))):
        prompt = stem[: draw(st.integers(0, 6))] + draw(st.lists(st.integers(0, 2), min_size=1, max_size=3))
        common: dict[str, Any] = {"max_new_tokens": draw(st.integers(1, 12)), "seed": number}
        sampling = draw(st.sampled_from(({}, {"temperature": 1.2}, {"presence_penalty": 0.8})))
        drafting = {"fused": draw(st.sampled_from((True, False, None))), "fallback": draw(st.booleans())}
        verified, plain = pair(sampling=sampling, drafting=drafting, **common)
        ratio = SamplingParams(policy=policy("verified", temperature=1.2, check="ratio", **drafting), **common)
        blocks = SamplingParams(block_size=3, threshold=0.4, **common)
        released = SamplingParams(policy=policy("hf21", block_length=4, threshold=0.3, max_forwards=20), **common)
        params = draw(st.sampled_from((verified, verified, verified, plain, ratio, blocks, released)))
        requests.append((prompt, params, draw(st.integers(0, 8))))
    return loaded, requests


@settings(max_examples=40)
@given(crowds(), st.sampled_from((2, 512)), st.sampled_from((1, 2, 64)), st.booleans(), st.sampled_from((30, 400)))
def test_in_any_company_the_answer_is_that_alone(
    case: tuple[LoadedModel, list[Asked]],
    prefill_tokens: int,
    max_requests: int,
    prefix_caching: bool,
    cache_tokens: int,
) -> None:
    # float64: a decision turns on rounding with a probability that no test run meets
    loaded, requests = case
    engine = Engine(
        loaded,
        prefill_tokens=prefill_tokens,
        max_requests=max_requests,
        prefix_caching=prefix_caching,
        cache_bytes=cache_tokens * 256,
    )
    numbers: dict[int, int] = {}
    done: dict[int, Completion] = {}
    for step in range(500):
        for i, (prompt, params, when) in enumerate(requests):
            if when == step:
                numbers[engine.submit(prompt, params)] = i
        for event in engine.step():
            if isinstance(event, Finished):
                done[numbers[event.request_id]] = event.completion
        if len(done) == len(requests):
            break
    for i, (prompt, params, _) in enumerate(requests):
        alone = answer(loaded, prompt, params)
        check_same(done[i], alone)
        assert done[i].drafts == alone.drafts, "nor do drafts depend on the others"
        assert (done[i].forwards.denoise, done[i].forwards.commit) == (alone.forwards.denoise, alone.forwards.commit)
    assert not engine.runner.slots
    assert prefix_caching or engine.prefixes.spans.used == 0


def test_a_request_can_be_cancelled_with_drafts_pending_and_the_others_go_on() -> None:
    loaded = causal(3, block_size=6)
    verified, plain = pair(drafting={"window": 6, "start": 6, "fused": False, "fallback": False}, max_new_tokens=18)
    prompts = [[1, 2], [4, 5, 6, 7, 8]]
    expected = [answer(loaded, prompt, plain) for prompt in prompts]
    with_drafts = 0
    for steps in range(9):
        engine = Engine(loaded, prefill_tokens=3, prefix_caching=True)
        redrafting(engine, oracle(prompts[1], expected[1].tokens))
        first, second = (engine.submit(prompt, verified) for prompt in prompts)
        finished: dict[int, Completion] = {}
        for _ in range(steps):
            finished |= {event.request_id: event.completion for event in engine.step() if isinstance(event, Finished)}
        running = engine.scheduler.running.get(second)
        if running is not None and isinstance(running.decoding, LeftToRightDecoding):
            with_drafts += bool(running.decoding.drafts)
        engine.cancel(second)
        assert second not in engine.runner.slots
        again = engine.submit(prompts[1], verified)
        while len(finished) < 2 + (second in finished):
            finished |= {event.request_id: event.completion for event in engine.step() if isinstance(event, Finished)}
        check_same(finished[first], expected[0])
        check_same(finished[again], expected[1])
    assert with_drafts >= 2


@pytest.mark.parametrize("shift", [False, True])
def test_prefixes_go_from_verified_requests_to_others_and_back(shift: bool) -> None:
    loaded = causal(5, block_size=4, logit_shift=shift)
    verified, plain = pair(drafting={"fallback": False}, max_new_tokens=10)
    prompt = [1, 2, 4, 5, 6]
    expected = answer(loaded, prompt, plain)
    onward = [*prompt, *expected.tokens, 9]
    for first, second in ((verified, plain), (plain, verified), (verified, verified)):
        engine = Engine(loaded, prefix_caching=True)
        redrafting(engine, mixed(prompt, expected.tokens))
        check_same(engine.generate([prompt], first)[0], expected)
        again = engine.generate([prompt], second)[0]
        check_same(again, expected)
        assert again.reused_tokens == len(prompt) - 1
        longer = engine.generate([onward], second)[0]
        check_same(longer, answer(loaded, onward, plain))
        # all but the last written token, which no forward read, and what follows it
        assert longer.reused_tokens == len(prompt) + len(expected.tokens) - 1


def test_a_prefix_ends_where_the_answer_does() -> None:
    # Drafts behind an EOS were verified with it; they are no part of what is kept.
    loaded = causal(1, block_size=8)
    verified, plain = pair(drafting={"window": 8, "start": 8, "fallback": False}, max_new_tokens=12)
    prompt = [1, 2, 4]
    text = answer(loaded, prompt, plain).tokens
    place = 5
    assert text[place] not in text[:place]
    engine = Engine(loaded, prefix_caching=True)
    redrafting(engine, oracle(prompt, text))
    ended = engine.generate(
        [prompt], SamplingParams(policy=verified.policy, max_new_tokens=12, stop_token_ids=(text[place],))
    )
    assert ended[0].tokens == text[:place]
    assert engine.cache_use.kept <= len(prompt) + place + 1
    longer = [*prompt, *text[: place + 1], 9, 9]
    check_same(engine.generate([longer], verified)[0], answer(loaded, longer, plain))
