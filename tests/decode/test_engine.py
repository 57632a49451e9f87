"""The engine against a slow decoder that recomputes everything, and what it promises besides."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from difflm.checkpoints.loading import LoadedModel
from difflm.decode.engine import Engine, generate, stream
from difflm.decode.events import Committed, Completion, Denoised, Event, Finished, Forwards
from difflm.decode.policies.named import policy
from difflm.decode.request import SamplingParams
from difflm.errors import DifflmError, RequestError
from difflm.types import CleanAttention, NoisyAttention
from tests.decode import reference
from tests.decode.tiny import MASK, VOCAB, certain, scripted, tiny

MARGIN = 1e-9  # decisions closer than this may turn on rounding, float64
PARAMETRISATIONS = list(itertools.product((False, True), ("block", "causal"), ("bidirectional", "causal")))


def check_against_reference(loaded: LoadedModel, prompt: list[int], params: SamplingParams) -> bool:
    """Assert engine = reference, fused and not; return False where a decision is too close to call."""
    assert params.block_size is not None
    assert params.threshold is not None
    expected = reference.decode_blocks(
        loaded,
        prompt,
        max_new_tokens=params.max_new_tokens,
        size=params.block_size,
        threshold=params.threshold,
        min_accept=params.min_accept,
        temperature=params.temperature,
        seed=params.seed,
        ignore_eos=params.ignore_eos,
    )
    if expected.margin < MARGIN:
        return False
    for fused in (True, False):
        found = Engine(loaded, fused=fused).generate([prompt], params)[0]
        assert found.tokens == expected.tokens
        assert found.num_tokens == expected.num_tokens
        assert found.finish_reason == expected.finish_reason
        commits = 0 if fused else expected.blocks - 1
        assert found.forwards == Forwards(prefill=expected.prefill, denoise=expected.denoise, commit=commits)
        assert expected.denoise <= expected.blocks * math.ceil(params.block_size / params.min_accept)
    return True


@pytest.mark.parametrize(("shift", "clean", "noisy"), PARAMETRISATIONS)
def test_cached_equals_uncached(shift: bool, clean: CleanAttention, noisy: NoisyAttention) -> None:
    size, checked = 4, 0
    for prompt_length in (1, size - 1, size, size + 1, 2 * size - 1, 2 * size):
        rng = random.Random(prompt_length)
        for threshold, min_accept in ((0.0, 1), (0.3, 1), (0.5, 2), (0.95, 3), (1.0, 1)):
            loaded = tiny(rng.randrange(1000), logit_shift=shift, clean=clean, noisy=noisy, eos=(3,))
            prompt = [rng.randrange(MASK) for _ in range(prompt_length)]
            params = SamplingParams(
                max_new_tokens=rng.choice((1, 5, 8, 11)),
                block_size=size,
                threshold=threshold,
                min_accept=min_accept,
                ignore_eos=rng.random() < 0.5,
            )
            checked += check_against_reference(loaded, prompt, params)
    assert checked > 20


@st.composite
def cases(draw: st.DrawFn) -> tuple[LoadedModel, list[int], SamplingParams]:
    shift, clean, noisy = draw(st.sampled_from(PARAMETRISATIONS))
    size = draw(st.sampled_from((1, 2, 3, 5, 8)))
    loaded = tiny(
        draw(st.integers(0, 10_000)),
        logit_shift=shift,
        clean=clean,
        noisy=noisy,
        eos=draw(st.sampled_from(((), (3,), (0, 7, 9)))),
        unassigned=draw(st.sampled_from(((), (10, 11)))),
    )
    prompt = draw(st.lists(st.integers(0, MASK - 1), min_size=1 if shift else 0, max_size=2 * size + 1))
    params = SamplingParams(
        max_new_tokens=draw(st.integers(1, 2 * size + 3)),
        block_size=size,
        threshold=draw(st.sampled_from((0.0, 0.2, 0.4, 0.7, 1.0))),
        min_accept=draw(st.integers(1, 3)),
        temperature=draw(st.sampled_from((0.0, 0.0, 0.7, 2.0))),
        seed=draw(st.integers(0, 5)),
        ignore_eos=draw(st.booleans()),
    )
    return loaded, prompt, params


@settings(max_examples=120, deadline=None)
@given(cases())
def test_cached_equals_uncached_property(case: tuple[LoadedModel, list[int], SamplingParams]) -> None:
    assume(check_against_reference(*case))


@pytest.mark.parametrize("noisy", ["bidirectional", "causal"])
def test_an_empty_prompt_starts_from_masks_alone(noisy: NoisyAttention) -> None:
    # Rows of masks without context are equal, so only a rule that takes all of them is free of ties.
    params = SamplingParams(max_new_tokens=9, block_size=4, threshold=0.0)
    for seed in range(4):
        assert check_against_reference(tiny(seed, noisy=noisy, eos=(3,)), [], params)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_next_token_decoding_equals_recomputation(temperature: float) -> None:
    for seed in range(6):
        loaded = tiny(seed, mask_id=None, block_size=None, eos=(3,))
        prompt = [seed, 1, 5, 2][: 1 + seed % 4]
        params = SamplingParams(decoding="next_token", max_new_tokens=9, temperature=temperature, seed=seed)
        found = generate(loaded, [prompt], params)[0]
        tokens, reason = reference.decode_next_token(
            loaded, prompt, max_new_tokens=9, temperature=temperature, seed=seed
        )
        assert (found.tokens, found.finish_reason) == (tokens, reason)
        count = len(tokens) + (reason == "stop")
        assert found.forwards == Forwards(denoise=count)
        assert found.tokens_per_forward == 1.0


def test_next_token_decoding_of_a_shifted_model_equals_its_blocks_of_one() -> None:
    # With logit_shift and block size 1 every token is read at the clean row before it: the AR model itself.
    for seed in range(4):
        loaded = tiny(seed, logit_shift=True, clean="causal", eos=(3,))
        prompt = [1, 2, 3, 4, 5]
        ar = generate(loaded, [prompt], SamplingParams(decoding="next_token", max_new_tokens=12))[0]
        ones = generate(loaded, [prompt], SamplingParams(block_size=1, max_new_tokens=12))[0]
        assert ar.tokens == ones.tokens


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_prefers_mask_and_unassigned_ids_still_ends_and_never_emits_them(
    shift: bool, temperature: float
) -> None:
    wanted = [0.0] * VOCAB
    wanted[MASK], wanted[11], wanted[10] = 50.0, 40.0, 40.0
    loaded = scripted(lambda position: wanted, logit_shift=shift, unassigned=(10, 11))
    for min_accept in (1, 3):
        params = SamplingParams(max_new_tokens=10, min_accept=min_accept, threshold=0.9, temperature=temperature)
        completion = generate(loaded, [[1, 2]], params)[0]
        assert len(completion.tokens) == 10
        assert not {MASK, 10, 11} & set(completion.tokens)
        # blocks of 4 behind 2 prompt tokens: 2, 4 and 4 positions to decide
        assert completion.forwards.denoise == sum(math.ceil(n / min_accept) for n in (2, 4, 4))


def test_eos_fill_does_not_count() -> None:
    # Everything is decided in one forward; the EOS is the second of eight tokens.
    loaded = scripted(lambda position: certain(5 if position < 5 else 3), eos=(3,), block_size=8)
    completion = generate(loaded, [[1, 2, 4, 6]], SamplingParams(max_new_tokens=64, threshold=0.9))[0]
    assert completion.tokens == [5]
    assert completion.finish_reason == "stop"
    assert completion.forwards == Forwards(denoise=1)
    assert completion.num_tokens == 2
    assert completion.tokens_per_forward == 2.0


def test_tokens_beyond_the_limit_are_neither_decided_nor_counted() -> None:
    loaded = scripted(lambda position: certain(position % 3), block_size=8)
    completion = generate(loaded, [[1, 2, 4]], SamplingParams(max_new_tokens=3, threshold=0.9))[0]
    assert completion.tokens == [0, 1, 2]
    assert completion.tokens_per_forward == 3.0
    model = loaded.model
    assert model.head_rows == [[3, 4, 5]]  # pyright: ignore[reportAttributeAccessIssue]
    assert model.forward_rows == [[1, 2, 4] + [MASK] * 5]  # pyright: ignore[reportAttributeAccessIssue]


def test_positions_behind_an_accepted_eos_cost_no_forwards() -> None:
    # Position 6 (an EOS) is the surest; 4 and 5 follow one by one; 7 would need a fourth forward.
    confidence = {4: 0.5, 5: 0.6, 6: 0.8, 7: 0.4}
    loaded = scripted(lambda position: certain(3 if position == 6 else 5, confidence[position]), eos=(3,))
    completion = generate(loaded, [[1, 2, 4, 6]], SamplingParams(max_new_tokens=4, threshold=0.9))[0]
    assert completion.tokens == [5, 5]
    assert completion.forwards == Forwards(prefill=1, denoise=3)
    assert completion.tokens_per_forward == 1.0


def test_an_eos_before_another_one_moves_the_end_forward() -> None:
    confidence = {4: 0.5, 5: 0.6, 6: 0.8, 7: 0.4}
    tokens = {4: 5, 5: 3, 6: 3, 7: 5}
    loaded = scripted(lambda position: certain(tokens[position], confidence[position]), eos=(3,))
    completion = generate(loaded, [[1, 2, 4, 6]], SamplingParams(max_new_tokens=4, threshold=0.9))[0]
    assert completion.tokens == [5]
    assert completion.num_tokens == 2


def test_the_first_eos_may_come_at_once_and_any_listed_id_is_one() -> None:
    for eos in (3, 7):
        loaded = scripted(lambda position, eos=eos: certain(eos), eos=(3, 7))
        completion = generate(loaded, [[1, 2, 4, 6]], SamplingParams(max_new_tokens=6))[0]
        assert (completion.tokens, completion.finish_reason, completion.num_tokens) == ([], "stop", 1)


def test_ignore_eos_decodes_to_the_limit_and_keeps_the_tokens() -> None:
    loaded = scripted(lambda position: certain(3), eos=(3,))
    completion = generate(loaded, [[1, 2]], SamplingParams(max_new_tokens=6, ignore_eos=True))[0]
    assert completion.tokens == [3] * 6
    assert (completion.finish_reason, completion.num_tokens) == ("length", 6)


def test_an_eos_in_the_prompt_does_not_end_anything() -> None:
    loaded = scripted(lambda position: certain(5), eos=(3,))
    completion = generate(loaded, [[3, 1, 3, 3, 3, 2]], SamplingParams(max_new_tokens=4))[0]
    assert completion.tokens == [5] * 4


def test_only_undecided_rows_reach_the_head() -> None:
    confidence = {5: 0.5, 6: 0.99, 7: 0.6}
    script = {row: certain(5, value) for row, value in confidence.items()}
    loaded = scripted(lambda position: script[position])
    generate(loaded, [[1, 2, 4, 6, 8]], SamplingParams(max_new_tokens=3, threshold=0.9))
    assert loaded.model.head_rows == [[5, 6, 7], [5, 7], [5]]  # pyright: ignore[reportAttributeAccessIssue]
    # With the shift, position p is read at row p - 1, the first one at the last row of the prefix.
    loaded = scripted(lambda position: script[position + 1], logit_shift=True)
    generate(loaded, [[1, 2, 4, 6, 8]], SamplingParams(max_new_tokens=3, threshold=0.9))
    assert loaded.model.head_rows == [[4, 5, 6], [4, 6], [4]]  # pyright: ignore[reportAttributeAccessIssue]


def test_forwards_of_fused_and_separate_commits() -> None:
    loaded = scripted(lambda position: certain(position % 3))
    prompt = [1, 2, 4, 6, 8]
    fused = Engine(loaded).generate([prompt], SamplingParams(max_new_tokens=10))[0]
    assert fused.forwards == Forwards(prefill=1, denoise=3)
    rows = loaded.model.forward_rows  # pyright: ignore[reportAttributeAccessIssue]
    assert rows == [
        [1, 2, 4, 6],
        [8, MASK, MASK, MASK],
        [8, 2, 0, 1] + [MASK] * 4,
        [2, 0, 1, 2] + [MASK] * 4,
    ]
    apart = Engine(loaded, fused=False).generate([prompt], SamplingParams(max_new_tokens=10))[0]
    assert apart.forwards == Forwards(prefill=1, denoise=3, commit=2)
    assert apart.tokens == fused.tokens
    assert apart.tokens_per_forward == 2.0


def test_streamed_blocks_join_to_the_completion_and_denoised_tokens_are_final() -> None:
    for seed, decoding in itertools.product(range(5), ("block", "next_token", "verified")):
        loaded = tiny(seed, logit_shift=True, eos=(3,), clean="causal" if decoding == "verified" else "block")
        params = SamplingParams(max_new_tokens=13, threshold=0.4, decoding=decoding)
        events = list(stream(loaded, [1, 2, 5], params))
        completion = generate(loaded, [[1, 2, 5]], params)[0]
        committed = [token for event in events if isinstance(event, Committed) for token in event.tokens]
        assert committed == completion.tokens
        assert isinstance(events[-1], Finished)
        assert events[-1].completion.tokens == completion.tokens
        assert sum(isinstance(event, Finished) for event in events) == 1
        denoised = [event for event in events if isinstance(event, Denoised)]
        assert len(denoised) == completion.forwards.denoise + completion.forwards.commit * (decoding == "verified")
        provisional = {place: token for e in denoised for place, token in zip(e.positions, e.tokens, strict=True)}
        assert [provisional[3 + i] for i in range(len(committed))] == committed


def test_requests_do_not_influence_each_other() -> None:
    loaded = tiny(2, eos=(3,))
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8], [9], [1, 2, 3]]
    params = SamplingParams(max_new_tokens=9, temperature=0.9, seed=11)
    together = generate(loaded, prompts, params)
    alone = [generate(loaded, [prompt], params)[0] for prompt in prompts]
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    other = generate(loaded, prompts, SamplingParams(max_new_tokens=9, temperature=0.9, seed=12))
    assert [c.tokens for c in other] != [c.tokens for c in together]


def test_completions_keep_the_order_of_the_prompts_and_no_state_stays_behind() -> None:
    engine = Engine(scripted(lambda position: certain(position % 3)))
    completions = engine.generate([[1] * 5, [1] * 2, []], SamplingParams(max_new_tokens=2))
    assert [c.tokens for c in completions] == [[2, 0], [2, 0], [0, 1]]
    assert engine.step() == []
    assert not engine.runner.slots
    assert generate(engine.loaded, []) == []


def test_closing_a_stream_cancels_its_request() -> None:
    engine = Engine(tiny(1))
    events = engine.stream([1, 2], SamplingParams(max_new_tokens=20, threshold=1.0))
    next(events)
    assert engine.runner.slots
    events.close()
    assert not engine.runner.slots
    assert engine.step() == []


def test_streams_of_one_engine_may_be_read_in_any_order() -> None:
    engine = Engine(tiny(1))
    params = SamplingParams(max_new_tokens=6)
    expected = [generate(engine.loaded, [prompt], params)[0].tokens for prompt in ([1, 2], [3])]
    first, second = engine.stream([1, 2], params), engine.stream([3], params)
    next(first)
    backwards = [list(second)[-1], list(first)[-1]]
    assert [e.completion.tokens for e in backwards if isinstance(e, Finished)] == expected[::-1]
    engine.stream([5], params).close()  # never read: never queued
    assert engine.step() == []


def test_a_cancelled_request_ends_its_stream() -> None:
    engine = Engine(tiny(1))
    events = engine.stream([1, 2], SamplingParams(max_new_tokens=20, threshold=1.0))
    engine.cancel(next(events).request_id)
    assert list(events) == []


def test_submitted_requests_finish_in_order() -> None:
    engine = Engine(tiny(1))
    params = SamplingParams(max_new_tokens=6)
    first, second = engine.submit([1, 2], params), engine.submit([3], params)
    finished: list[Event] = []
    while events := engine.step():
        finished += [event for event in events if isinstance(event, Finished)]
    assert [event.request_id for event in finished] == [first, second]
    assert not engine.runner.slots


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_not_a_number_is_reported_and_leaves_nothing_behind(temperature: float) -> None:
    engine = Engine(scripted(lambda position: [math.nan] * VOCAB))
    with pytest.raises(DifflmError, match="NaN"):
        engine.generate([[1]], SamplingParams(max_new_tokens=2, temperature=temperature))
    assert not engine.runner.slots
    assert engine.step() == []


def test_one_bad_prompt_refuses_all_before_any_forward() -> None:
    engine = Engine(scripted(lambda position: certain(1)))
    with pytest.raises(RequestError, match="MASK"):
        engine.generate([[1], [MASK]], SamplingParams(max_new_tokens=2))
    assert engine.step() == []
    with pytest.raises(RequestError, match="list of prompts"):
        engine.generate("hello")  # a string is a sequence of strings


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"max_new_tokens": 3}, r"params: dict where SamplingParams belong; give difflm.SamplingParams\(\*\*params\)"),
        ({}, "params: dict where SamplingParams belong"),
        (3, r"params: int where SamplingParams belong; give difflm.SamplingParams\(max_new_tokens=128\)"),
        (SamplingParams, "params: type where SamplingParams belong"),
    ],
)
def test_parameters_of_another_type_are_refused_everywhere(params: Any, said: str) -> None:
    engine = Engine(tiny())
    calls: list[Callable[[], object]] = [
        lambda: generate(tiny(), [[1]], params),
        lambda: generate(tiny(), [], params),
        lambda: engine.submit([1], params),
        lambda: engine.stream([1], params),
        lambda: engine.complete([([1], params)]),
        lambda: engine.infill([1, None], params),
    ]
    for refused in calls:
        with pytest.raises(RequestError, match=said):
            refused()
    assert engine.step() == []


def test_a_completion_reports_its_rates() -> None:
    completion: Completion = generate(tiny(0), [[1, 2]], SamplingParams(max_new_tokens=8))[0]
    assert completion.seconds > 0
    assert completion.tokens_per_second == pytest.approx(8 / completion.seconds)


@st.composite
def mixes(draw: st.DrawFn) -> tuple[LoadedModel, list[tuple[list[int], SamplingParams, int]]]:
    """Return a model and requests: prompt, parameters, and the step at which each is submitted."""
    shift, clean, noisy = draw(st.sampled_from(PARAMETRISATIONS))
    loaded = tiny(draw(st.integers(0, 10_000)), logit_shift=shift, clean=clean, noisy=noisy, eos=(3,))
    requests: list[tuple[list[int], SamplingParams, int]] = []
    for _ in range(draw(st.integers(2, 5))):
        prompt = draw(st.lists(st.integers(0, MASK - 1), min_size=1, max_size=9))
        common: dict[str, Any] = {"max_new_tokens": draw(st.integers(1, 9)), "seed": draw(st.integers(0, 3))}
        named: dict[str, dict[str, Any]] = {
            "hf21": {"block_length": 3, "threshold": 0.3, "editing_threshold": 0.2, "max_forwards": 20},
            "sglang": {"block_size": 4, "edit_threshold": 0.3},
            "native": {"block_length": 2, "fixed": 2, "temperature": 0.8},
            "ratio": {"check": "ratio", "temperature": 1.1, "start": 3},
        }
        left_to_right = ("verified", "ratio") if clean == "causal" else ("next_token",)
        kind = draw(st.sampled_from(("own", "own", "next_token", *left_to_right, "hf21", "sglang", "native")))
        if kind == "own":
            params = SamplingParams(
                block_size=draw(st.sampled_from((1, 2, 5))),
                threshold=draw(st.sampled_from((0.0, 0.4, 1.0))),
                temperature=draw(st.sampled_from((0.0, 0.9))),
                **common,
            )
        elif kind in ("next_token", "verified"):
            params = SamplingParams(decoding=kind, **common)  # type: ignore[arg-type]
        else:
            params = SamplingParams(policy=policy({"ratio": "verified"}.get(kind, kind), **named[kind]), **common)
        requests.append((prompt, params, draw(st.integers(0, 6))))
    return loaded, requests


@settings(max_examples=60, deadline=None)
@given(mixes(), st.sampled_from((1, 2, 64)), st.booleans(), st.randoms(use_true_random=False))
def test_batched_equals_alone_property(
    case: tuple[LoadedModel, list[tuple[list[int], SamplingParams, int]]],
    max_requests: int,
    fused: bool,
    random_: random.Random,
) -> None:
    # float64: a decision turns on rounding with a probability that no test run meets
    loaded, requests = case
    alone = [Engine(loaded, fused=fused).generate([prompt], params)[0] for prompt, params, _ in requests]
    engine = Engine(loaded, fused=fused, max_requests=max_requests, cache_bytes=40 * 256)  # 40 tokens
    order = list(range(len(requests)))
    random_.shuffle(order)
    numbers: dict[int, int] = {}
    done: dict[int, Completion] = {}
    extra = engine.submit([1, 2], SamplingParams(max_new_tokens=20, threshold=1.0))
    for step in range(500):
        for i in order:
            prompt, params, when = requests[i]
            if when == step:
                numbers[engine.submit(prompt, params)] = i
        if step == 3:
            engine.cancel(extra)
        for event in engine.step():
            if isinstance(event, Finished) and event.request_id in numbers:
                done[numbers[event.request_id]] = event.completion
        if len(done) == len(requests):
            break
    engine.cancel(extra)
    for i, expected in enumerate(alone):
        found = done[i]
        assert (found.tokens, found.forwards, found.finish_reason) == (
            expected.tokens,
            expected.forwards,
            expected.finish_reason,
        )
    assert not engine.runner.slots
    assert engine.prefixes.spans.used == 0


def test_one_forward_serves_all_requests_and_the_head_sees_undecided_rows_only() -> None:
    loaded = scripted(lambda position: certain(5, 0.5))
    engine = Engine(loaded)
    first = engine.submit([1, 2, 4, 6, 8], SamplingParams(max_new_tokens=3, threshold=1.0))
    engine.step()
    second = engine.submit([1, 2], SamplingParams(max_new_tokens=2, threshold=1.0))
    finished = [event.request_id for _ in range(4) for event in engine.step() if isinstance(event, Finished)]
    assert finished == [second, first]
    model = loaded.model
    assert model.forward_rows == [  # pyright: ignore[reportAttributeAccessIssue]
        [1, 2, 4, 6],
        [8, MASK, MASK, MASK, 1, 2, MASK, MASK],
        [8, 5, MASK, MASK, 1, 2, 5, MASK],
        [8, 5, 5, MASK],
    ]
    assert model.head_rows == [[5, 6, 7, 2, 3], [6, 7, 3], [7]]  # pyright: ignore[reportAttributeAccessIssue]


def test_a_request_that_never_fits_is_refused_and_one_that_does_not_fit_now_waits() -> None:
    engine = Engine(tiny(1), cache_bytes=20 * 256)
    with pytest.raises(RequestError, match="take 24 tokens of cache, and the engine has 20"):
        engine.submit([1] * 10, SamplingParams(max_new_tokens=12))
    params = SamplingParams(max_new_tokens=8, threshold=1.0)
    numbers = [engine.submit([1, 2], params) for _ in range(3)]  # 12 tokens each: one at a time
    finished: list[int] = []
    for _ in range(60):
        finished += [event.request_id for event in engine.step() if isinstance(event, Finished)]
    assert finished == numbers
    assert engine.runner.pool.capacity <= 20


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_requests": 0}, "integer >= 1"),
        ({"max_requests": 1.5}, "integer >= 1"),
        ({"cache_bytes": 100}, "one takes 256 bytes"),
    ],
)
def test_an_engine_without_room_is_refused(options: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Engine(tiny(1), **options)
