"""Sampling options in the engine: ends, strings, seeds, logprobs, edits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.checkpoints.loading import LoadedModel
from difflm.decode.engine import Engine, generate, seeds, stream
from difflm.decode.events import Committed, Completion, Denoised, Edited, Finished
from difflm.decode.policies.named import policy
from difflm.decode.policies.native import Native
from difflm.decode.request import SamplingParams
from difflm.errors import RequestError
from tests.decode.tiny import MASK, VOCAB, certain, scripted, tiny

LETTERS = "abcdefghijklm"


class Letters(LoadedModel):
    """A model whose token i is the i-th letter."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return "".join(LETTERS[token] for token in token_ids)


def lettered(loaded: LoadedModel) -> LoadedModel:
    return Letters(loaded.model, object(), loaded.config, loaded.path)  # type: ignore[arg-type]


def spelling(text: str, **facts: Any) -> LoadedModel:
    """Return a model that writes `text` from position 0, one forward a block."""
    return lettered(scripted(lambda position: certain(LETTERS.index(text[position])), **facts))


@pytest.mark.parametrize("decoding", ["block", "next_token"])
@pytest.mark.parametrize(
    ("stop", "text", "tokens", "counted"),
    [(["ef"], "bcd", 3, 5), (["e", "d"], "bc", 2, 3), (["zz"], "bcdefghi", 8, 8), (["bc"], "", 0, 2)],
)
def test_stop_strings_cut_exactly_also_across_blocks(
    decoding: Any, stop: list[str], text: str, tokens: int, counted: int
) -> None:
    word = "abcdefghijkl"
    loaded = spelling(word if decoding == "block" else word[1:], logit_shift=False)  # a row predicts the next letter
    params = SamplingParams(max_new_tokens=8, stop=stop, decoding=decoding)
    events = list(stream(loaded, [0], params))
    completion = events[-1].completion if isinstance(events[-1], Finished) else None
    assert completion is not None
    assert (completion.text, len(completion.tokens), completion.num_tokens) == (text, tokens, counted)
    stopped = counted < 8
    expected = next(each for each in stop if word[tokens + 1 :].startswith(each)) if stopped else None
    assert completion.stopped_by == expected
    assert completion.finish_reason == ("stop" if stopped else "length")
    told = [token for event in events if isinstance(event, Committed) for token in event.tokens]
    assert told == completion.tokens


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**4), st.lists(st.text("abcdefg", min_size=1, max_size=2), min_size=1, max_size=3))
def test_stopping_early_changes_nothing_before_the_cut(seed: int, stop: list[str]) -> None:
    loaded = lettered(tiny(seed))
    for decoding in ("block", "next_token"):
        params = SamplingParams(max_new_tokens=10, threshold=0.4, decoding=decoding)
        whole = generate(loaded, [[1, 2]], params)[0]
        events = list(stream(loaded, [1, 2], SamplingParams(
            max_new_tokens=10, threshold=0.4, decoding=decoding, stop=stop
        )))  # fmt: skip
        completion = events[-1].completion if isinstance(events[-1], Finished) else None
        assert completion is not None
        places = [at for at in (str(whole.text).find(each) for each in stop) if at >= 0]
        assert completion.text == str(whole.text)[: min(places, default=None)]
        assert [t for event in events if isinstance(event, Committed) for t in event.tokens] == completion.tokens
        assert completion.forwards.denoise <= whole.forwards.denoise


def test_stop_ids_end_like_an_eos_also_when_that_is_ignored() -> None:
    loaded = spelling("abcdefghijkl", eos=(3,))
    found = [
        (len(c.tokens), c.stopped_by)
        for c in (
            generate(loaded, [[0]], SamplingParams(max_new_tokens=8, stop_token_ids=ids, ignore_eos=ignore))[0]
            for ids, ignore in (((5,), False), ((5,), True), ((2, 5), True), ((), True))
        )
    ]
    assert found == [(2, 3), (4, 5), (1, 2), (8, None)]


@pytest.mark.parametrize("decoding", ["block", "next_token"])
def test_nothing_ends_an_answer_before_min_tokens(decoding: Any) -> None:
    loaded = lettered(scripted(lambda position: certain(3, 0.8), eos=(3,)))
    params = SamplingParams(max_new_tokens=9, min_tokens=5, decoding=decoding, threshold=0.5)
    (completion,) = generate(loaded, [[1]], params)
    assert len(completion.tokens) == 5
    assert completion.stopped_by == 3
    letters = spelling("a" * 12)
    (completion,) = generate(letters, [[1]], SamplingParams(max_new_tokens=9, min_tokens=4, stop=["aa"]))
    assert completion.num_tokens == 5
    assert completion.text == "aaa"


def test_answers_of_one_prompt_have_seeds_of_their_own_and_the_first_is_the_plain_one() -> None:
    loaded = tiny(3)
    params = SamplingParams(max_new_tokens=8, temperature=1.5, seed=5, n=3)
    found = generate(loaded, [[1, 2], [3]], params)
    assert len(found) == 6
    single = [
        generate(loaded, [prompt], SamplingParams(max_new_tokens=8, temperature=1.5, seed=seed))[0].tokens
        for prompt in ([1, 2], [3])
        for seed in seeds(params)
    ]
    assert [c.tokens for c in found] == single
    assert seeds(params)[0] == 5
    assert len({tuple(c.tokens) for c in found[:3]}) == 3
    with pytest.raises(RequestError, match="n: 3 answers"):
        Engine(loaded).submit([1], params)


def check_scores(completion: Completion, top: int) -> None:
    assert completion.logprobs is not None
    assert [score.token for score in completion.logprobs] == completion.tokens
    for score in completion.logprobs:
        assert score.logprob <= 0
        assert len(score.top) == top
        assert [pair[1] for pair in score.top] == sorted((pair[1] for pair in score.top), reverse=True)
        assert all(token != MASK for token, _ in score.top)


@pytest.mark.parametrize("decoding", ["block", "next_token"])
def test_logprobs_are_told_for_every_token(decoding: Any) -> None:
    loaded = tiny(4, eos=(3,))
    params = SamplingParams(max_new_tokens=7, logprobs=2, decoding=decoding, ignore_eos=True)
    plain = SamplingParams(max_new_tokens=7, decoding=decoding, ignore_eos=True)
    engine = Engine(loaded)
    numbers = [engine.submit([1, 2], each) for each in (params, plain)]  # one call of the rule for both
    done: dict[int, Completion] = {}
    denoised: dict[int, list[float]] = {number: [] for number in numbers}
    while len(done) < 2:
        for event in engine.step():
            if isinstance(event, Finished):
                done[event.request_id] = event.completion
            elif isinstance(event, Denoised):
                denoised[event.request_id] += event.confidences
    with_, without = done[numbers[0]], done[numbers[1]]
    assert with_.tokens == without.tokens
    assert without.logprobs is None
    check_scores(with_, 2)
    # At temperature 0 the confidence of the forward that wrote a token is its probability.
    assert with_.logprobs is not None
    told = sorted(math.exp(score.logprob) for score in with_.logprobs)
    assert told == pytest.approx(sorted(denoised[numbers[0]]))
    assert all(score.top[0] == (score.token, score.logprob) for score in with_.logprobs)


def test_logprobs_under_other_policies_and_strategies() -> None:
    loaded = tiny(4)
    for chosen in (policy("hf21", block_length=4), policy("native", entropy_bound=0.5), policy("hf20")):
        (completion,) = generate(loaded, [[1, 2]], SamplingParams(max_new_tokens=6, policy=chosen, logprobs=1))
        assert completion.logprobs is not None
        assert [score.token for score in completion.logprobs] == completion.tokens


@pytest.mark.parametrize("eos", [(), (3,)])
@pytest.mark.parametrize("stop", [(), ("ab",), ("l", "ca")])
@pytest.mark.parametrize(
    "settings",
    [
        {"decoding": "block"},
        {"decoding": "block", "editing_threshold": 0.2, "threshold": 0.2},
        {"decoding": "next_token"},
        {"decoding": "verified"},
        {"policy": policy("hf20", gen_length=9, block_length=4)},
    ],
    ids=str,
)
def test_logprobs_of_a_stream_joined_are_the_completions(
    settings: dict[str, Any], stop: tuple[str, ...], eos: tuple[int, ...]
) -> None:
    for seed in range(4):
        loaded = lettered(tiny(seed, clean="causal", eos=eos))
        params = SamplingParams(max_new_tokens=9, logprobs=1, stop=stop, **settings)
        events = list(stream(loaded, [1, 2], params))
        told = [score for event in events if isinstance(event, Committed) for score in event.logprobs or ()]
        assert isinstance(events[-1], Finished)
        assert tuple(told) == events[-1].completion.logprobs
        plain = stream(loaded, [1, 2], SamplingParams(max_new_tokens=9, stop=stop, **settings))
        assert all(event.logprobs is None for event in plain if isinstance(event, Committed))


def changing(first: list[int], later: list[int]) -> LoadedModel:
    """Return a model that proposes `first` while it has seen masks, and `later` once it has not."""
    loaded = scripted(lambda position: certain(5))
    model: Any = loaded.model
    forward = model.forward

    def watched(token_BN: torch.Tensor, position_BN: torch.Tensor, attend: Any) -> torch.Tensor:
        words = first if MASK in token_BN[0].tolist() else later
        model.script = lambda position: certain(words[position], 0.9)
        return forward(token_BN, position_BN, attend)

    model.forward = watched
    return loaded


def test_native_editing_rewrites_decided_tokens_and_ends_when_nothing_changes() -> None:
    loaded = changing([5] * 4, [5, 6, 5, 7])
    events = list(stream(loaded, [], SamplingParams(max_new_tokens=4, threshold=0.5, editing_threshold=0.8)))
    edits = [event for event in events if isinstance(event, Edited)]
    assert [(e.positions, e.before, e.tokens) for e in edits] == [((1, 3), (5, 5), (6, 7))]
    completion = events[-1].completion if isinstance(events[-1], Finished) else None
    assert completion is not None
    assert completion.tokens == [5, 6, 5, 7]
    assert completion.forwards.denoise == 3  # fills, edits, verifies
    (never,) = generate(loaded, [[]], SamplingParams(max_new_tokens=4, threshold=0.5, editing_threshold=0.95))
    assert never.tokens == [5] * 4
    (none,) = generate(
        loaded, [[]], SamplingParams(max_new_tokens=4, threshold=0.5, editing_threshold=0.8, max_post_steps=0)
    )
    assert (none.tokens, none.forwards.denoise) == ([5] * 4, 1)


def test_an_eos_that_is_edited_away_opens_what_was_behind_it() -> None:
    loaded = changing([5, 3, 5, 5], [5, 6, 5, 7])
    loaded = LoadedModel(loaded.model, None, tiny(eos=(3,)).config, loaded.path)
    confidence = SamplingParams(max_new_tokens=4, threshold=0.5, editing_threshold=0.8)
    (completion,) = generate(loaded, [[]], confidence)
    assert completion.tokens == [5, 6, 5, 7]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**4), st.sampled_from((0.0, 0.3)), st.integers(0, 3), st.sampled_from((0.0, 1.0)))
def test_native_editing_is_bounded_and_never_writes_a_mask(
    seed: int, editing: float, post_steps: int, temperature: float
) -> None:
    params = SamplingParams(
        max_new_tokens=9,
        block_size=3,
        threshold=0.4,
        editing_threshold=editing,
        max_post_steps=post_steps,
        temperature=temperature,
    )
    (completion,) = generate(tiny(seed, eos=(3,)), [[1, 2]], params)
    assert MASK not in completion.tokens
    assert completion.forwards.denoise <= 4 * (3 + post_steps + 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_p": 0.0}, "top_p"),
        ({"min_tokens": 200}, "min_tokens: 200 is more than max_new_tokens"),
        ({"logprobs": 21}, "at most 20"),
        ({"n": 0}, "n: 0"),
        ({"stop": "text"}, "stop: 'text' cannot be used"),
        ({"repetition_penalty": 0}, "> 0"),
        ({"policy": policy("hf20"), "top_k": 3}, "top_k: 3 has no effect beside a policy"),
        ({"policy": "hf20"}, "policy: 'hf20' is no policy; make one by its name: difflm.policy("),
        ({"stop": None}, "stop: None cannot be used"),
        ({"decoding": "next_token", "editing_threshold": 0.5}, "editing_threshold: 0.5 has no effect with decoding"),
        ({"stop_token_ids": 5}, "stop_token_ids: 5 cannot be used"),
        ({"logit_bias": [3]}, "logit_bias: [3] cannot be used; give a mapping"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as refused:
        SamplingParams(**options)
    assert said in str(refused.value)


def test_the_mask_is_no_end_of_an_answer() -> None:
    # Turns of some parents' chat templates end with the id that is the mask of the converted model.
    params = SamplingParams(max_new_tokens=6, threshold=0.5, stop_token_ids=(MASK,))
    plain = SamplingParams(max_new_tokens=6, threshold=0.5)
    (found,), (expected,) = generate(tiny(1), [[1, 2]], params), generate(tiny(1), [[1, 2]], plain)
    assert found.tokens == expected.tokens
    assert found.forwards == expected.forwards
    assert found.finish_reason == "length"
    (listed,) = generate(tiny(1, eos=(MASK,)), [[1, 2]], plain)
    assert listed.tokens == expected.tokens


def test_ids_of_a_policy_that_are_not_in_the_vocabulary_are_refused() -> None:
    for each, said in (
        (policy("hf20", mask_id=VOCAB), f"policy: mask_id: id {VOCAB} is not in the vocabulary"),
        (Native(mask_id=-1), "policy: mask_id: id -1 is not in the vocabulary"),
        *(
            (policy(name, eos_id=VOCAB), f"policy: eos_id: id {VOCAB} is not in the vocabulary")
            for name in ("hf20", "hf21", "sglang", "dinfer", "native")
        ),
        (policy("native", logit_bias={VOCAB: 1.0}), f"logit_bias: id {VOCAB} is not in the vocabulary"),
    ):
        with pytest.raises(RequestError, match=said):
            generate(tiny(), [[1]], SamplingParams(max_new_tokens=4, policy=each))


def test_what_chose_the_positions_is_told() -> None:
    loaded = scripted(lambda position: [3.0 if token == 1 else 0.0 for token in range(VOCAB)])  # all at 0.63
    for settings_, said in (({"threshold": 0.5}, "threshold"), ({"threshold": 0.7}, "top_k"), ({"fixed": 2}, "top_k")):
        params = SamplingParams(max_new_tokens=4, policy=policy("native", block_length=4, **settings_))
        first = next(event for event in stream(loaded, [], params) if isinstance(event, Denoised))
        assert first.selected_by == said


def test_options_that_do_not_fit_the_model_are_refused() -> None:
    with pytest.raises(RequestError, match="stop: it needs text"):
        generate(tiny(), [[1]], SamplingParams(max_new_tokens=4, stop=["a"]))
    for options in ({"stop_token_ids": (VOCAB,)}, {"logit_bias": {VOCAB: 1.0}}):
        with pytest.raises(RequestError, match=f"id {VOCAB} is not in the vocabulary"):
            generate(tiny(), [[1]], SamplingParams(max_new_tokens=4, **options))  # type: ignore[arg-type]
