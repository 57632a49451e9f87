"""Finished blocks are found again by the same tokens under the same layout only, and give up their room when needed."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.checkpoints.loading import LoadedModel
from difflm.decode.engine import Engine, generate
from difflm.decode.events import Completion, Finished
from difflm.decode.policies.named import policy
from difflm.decode.prefixes import Chain, Prefixes
from difflm.decode.request import SamplingParams
from difflm.decode.slots import Spans
from tests.decode.test_engine import PARAMETRISATIONS
from tests.decode.tiny import MASK, certain, scripted, tiny

FULL = SamplingParams(max_new_tokens=4, block_size=4, threshold=1.0)


def keys_of(tokens: list[int], size: int = 2, *, causal: bool = False) -> list[bytes]:
    chain = Chain(size, causal)
    for stop in (0, len(tokens) // 2, len(tokens)):  # however it grew
        chain.extend(tokens[:stop])
    return chain.keys


def test_a_key_stands_for_its_block_and_everything_before_it() -> None:
    first = keys_of([1, 2, 3, 4, 5])
    assert len(first) == 2
    assert keys_of([1, 2, 3, 4, 9, 9])[:2] == first
    for other in (keys_of([1, 2, 3, 5]), keys_of([2, 1, 3, 4]), keys_of([1, 2, 3, 4], causal=True)):
        assert other[1] != first[1]
    assert not set(keys_of([1, 2, 3, 4], size=1)) & set(first)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3), st.booleans()), max_size=25))
def test_spans_hold_what_is_found(steps: list[tuple[int, int, bool]]) -> None:
    # A cell of `content` is the key that was written there; requests come with one of five chains of three blocks.
    prefixes, content = Prefixes(Spans(12), kept=True), [b""] * 12
    running: list[int] = []
    for which, blocks, leaves in steps:
        if leaves and running:
            prefixes.leave(running.pop(which % len(running)), 2)
            continue
        keys = keys_of([min(which, place) for place in range(2 * blocks)])
        source, count = prefixes.find(keys)
        held = content[source : source + 2 * count : 2]
        assert held == keys[:count]
        start = prefixes.reserve(2 * blocks)
        if start is None:
            continue
        running.append(start)
        prefixes.hold(start, keys)
        content[start : start + 2 * blocks] = [key for key in keys for _ in range(2)]
    for start, keys in prefixes.held.items():
        assert content[start : start + 2 * len(keys) : 2] == keys
    for start in running:
        prefixes.leave(start, 2)
    assert prefixes.idle_entries == prefixes.spans.used
    last = [keys[-1] for keys in prefixes.held.values()]
    assert not any(last.count(key) > 1 for key in last), "the same blocks are kept twice"
    assert prefixes.reserve(12) == 0
    assert not prefixes.held
    assert not prefixes.holders


def test_the_longest_unused_blocks_make_room() -> None:
    prefixes = Prefixes(Spans(6), kept=True)
    chains = [keys_of([number, number]) for number in range(4)]
    for chain in chains[:3]:
        start = prefixes.reserve(2)
        assert start is not None
        prefixes.hold(start, chain)
        prefixes.leave(start, 2)
    assert prefixes.find(chains[0]) == (0, 1)  # used again: the second is now the oldest
    assert prefixes.reserve(2) == 2
    assert [prefixes.find(chain)[1] for chain in chains] == [1, 0, 1, 0]
    assert (prefixes.evicted, prefixes.idle_entries) == (2, 4)


def test_blocks_that_another_span_holds_are_not_kept_twice() -> None:
    prefixes = Prefixes(Spans(12), kept=True)
    longer, shorter = keys_of([1, 2, 3, 4]), keys_of([1, 2])
    for start, keys in ((0, longer), (4, shorter), (6, shorter)):
        assert prefixes.reserve(2 * len(keys)) == start
        prefixes.hold(start, keys)
    prefixes.leave(4, 2)  # the first one runs on and holds all of it
    assert prefixes.idle_entries == 0
    prefixes.leave(0, 2)
    prefixes.leave(6, 2)
    assert (prefixes.idle_entries, prefixes.find(longer)) == (4, (0, 2))


def answer(engine: Engine, prompt: list[int], params: SamplingParams = FULL) -> Completion:
    return engine.generate([prompt], params)[0]


def test_a_prompt_that_began_earlier_is_not_read_again() -> None:
    loaded = tiny(4)
    engine = Engine(loaded, prefix_caching=True)
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    first = answer(engine, prompt)
    assert (first.reused_tokens, first.forwards.prefill) == (0, 1)
    again = answer(engine, prompt)
    assert (again.tokens, again.reused_tokens, again.forwards.prefill) == (first.tokens, 8, 0)
    # the conversation goes on: the block that prompt and answer share was finished, too
    longer = [*prompt, *first.tokens, 3, 3, 3, 3]
    onward = answer(engine, longer)
    assert (onward.tokens, onward.reused_tokens) == (generate(loaded, [longer], FULL)[0].tokens, 12)
    other = answer(engine, [*prompt[:7], 0, *prompt[8:]])
    assert other.reused_tokens == 4
    use = engine.cache_use
    assert (use.running, use.reused, use.evicted) == (0, 24, 0)
    assert use.kept == 20 + 12  # the longest conversation, and the one that branched off
    assert answer(Engine(loaded), prompt).reused_tokens == 0


@pytest.mark.parametrize("decoding", ["block", "next_token"])
def test_a_shifted_model_sees_the_last_prompt_row_again(decoding: Any) -> None:
    loaded = tiny(4, logit_shift=True)
    engine = Engine(loaded, prefix_caching=True)
    params = SamplingParams(max_new_tokens=4, decoding=decoding)
    first, again = (answer(engine, [1, 2, 3, 4, 5, 6, 7, 8], params) for _ in range(2))
    assert again.tokens == first.tokens
    assert again.reused_tokens == (7 if decoding == "next_token" else 4)


def test_other_layouts_share_nothing() -> None:
    engine = Engine(tiny(4), prefix_caching=True)
    prompt = [1, 2, 3, 4, 5, 6, 7, 8]
    answer(engine, prompt)
    for params in (
        SamplingParams(max_new_tokens=4, block_size=2),
        SamplingParams(max_new_tokens=4, policy=policy("hf21", block_length=8)),
        SamplingParams(max_new_tokens=4, decoding="next_token"),
    ):
        assert answer(engine, prompt, params).reused_tokens == 0
    same = SamplingParams(max_new_tokens=4, policy=policy("sglang", block_size=4))
    assert answer(engine, prompt, same).reused_tokens == 8


def test_requests_that_begin_alike_read_their_common_blocks_once() -> None:
    loaded = scripted(lambda position: certain(5))
    engine = Engine(loaded, prefix_caching=True, prefill_tokens=4)
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8, last] for last in (9, 10)]
    found = engine.generate(prompts, SamplingParams(max_new_tokens=3))
    assert [each.reused_tokens for each in found] == [0, 8]
    block = [5, MASK, MASK, MASK]
    assert (
        loaded.model.forward_rows
        == [  # pyright: ignore[reportAttributeAccessIssue]
            [1, 2, 3, 4],
            [5, 6, 7, 8],
            [9, *block[1:], 10, *block[1:]],
        ]
    )


@st.composite
def crowds(draw: st.DrawFn) -> tuple[LoadedModel, list[tuple[list[int], SamplingParams, int, int]]]:
    """Return a model and requests that begin alike: prompt, parameters, step of submission and of cancellation."""
    shift, clean, noisy = draw(st.sampled_from(PARAMETRISATIONS))
    loaded = tiny(draw(st.integers(0, 10_000)), logit_shift=shift, clean=clean, noisy=noisy, eos=(3,))
    stem = [1, 2, 4, 5, 6, 7, 8, 9]
    left_to_right = "verified" if clean == "causal" else "next_token"
    requests: list[tuple[list[int], SamplingParams, int, int]] = []
    for _ in range(draw(st.integers(2, 7))):
        prompt = stem[: draw(st.integers(0, 8))] + draw(st.lists(st.integers(0, 2), min_size=1, max_size=3))
        new = draw(st.integers(1, 9))
        params = draw(
            st.sampled_from(
                (
                    SamplingParams(max_new_tokens=new, block_size=2, threshold=0.4),
                    SamplingParams(max_new_tokens=new, block_size=4, threshold=0.4, editing_threshold=0.5),
                    SamplingParams(max_new_tokens=new, block_size=2, threshold=1.0, temperature=0.9, seed=new),
                    SamplingParams(max_new_tokens=new, policy=policy("hf20", block_length=4, gen_length=new)),
                    SamplingParams(max_new_tokens=new, policy=policy("sglang", block_size=2, edit_threshold=0.3)),
                    SamplingParams(max_new_tokens=new, decoding="next_token"),
                    SamplingParams(max_new_tokens=new, decoding=left_to_right, temperature=0.9, seed=new),
                )
            )
        )
        requests.append((prompt, params, draw(st.integers(0, 12)), draw(st.sampled_from((1, 2, 4, 99)))))
    return loaded, requests


@settings(max_examples=60, deadline=None)
@given(
    crowds(), st.booleans(), st.sampled_from((1, 3, 512)), st.sampled_from((1, 2, 64)), st.sampled_from((24, 40, 4000))
)
def test_answers_are_those_without(
    case: tuple[LoadedModel, list[tuple[list[int], SamplingParams, int, int]]],
    fused: bool,
    prefill_tokens: int,
    max_requests: int,
    cache_tokens: int,
) -> None:
    # float64: a decision turns on rounding with a probability that no test run meets
    loaded, requests = case
    engine = Engine(
        loaded,
        fused=fused,
        max_requests=max_requests,
        cache_bytes=cache_tokens * 256,
        prefill_tokens=prefill_tokens,
        prefix_caching=True,
    )
    numbers: dict[int, int] = {}
    done: dict[int, Completion] = {}
    for step in itertools.count():
        for i, (prompt, params, begin, patience) in enumerate(requests):
            if step == begin:
                numbers[engine.submit(prompt, params)] = i
            if step == begin + patience:
                engine.cancel(next(number for number, each in numbers.items() if each == i))
        for event in engine.step():
            if isinstance(event, Finished):
                done[numbers[event.request_id]] = event.completion
        if step > 112 and not engine.scheduler.running:
            break
    assert {i for i, each in enumerate(requests) if each[3] == 99} <= set(done)
    for i, found in done.items():
        prompt, params, _, _ = requests[i]
        alone = Engine(loaded, fused=fused).generate([prompt], params)[0]
        assert (found.tokens, found.finish_reason, found.forwards.denoise, found.forwards.commit) == (
            alone.tokens,
            alone.finish_reason,
            alone.forwards.denoise,
            alone.forwards.commit,
        )
    assert not engine.runner.slots
    use = engine.cache_use
    assert (use.running, use.reused) >= (0, sum(each.reused_tokens for each in done.values()))
    assert use.kept == engine.prefixes.spans.used
    assert engine.runner.pool.capacity <= cache_tokens
