"""Answers grow by events, and end as the engine ends them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from difflm.checkpoints.loading import LoadedModel
from difflm.decode.engine import stream
from difflm.decode.events import Committed, Completion, Denoised, DraftCounts, Finished, Forwards
from difflm.decode.request import SamplingParams
from difflm.serving.answers import Answer, usage_of
from difflm.serving.texts import GrowingText


def answer(loaded: LoadedModel, index: int = 0, stops: Sequence[str] = ()) -> Answer:
    growing = GrowingText(loaded.decode, tuple(stops))
    return Answer(loaded=loaded, index=index, prompt=(1, 2), seed=0, growing=growing)


def test_the_parts_of_an_answer_are_the_engines_text(loaded: LoadedModel) -> None:
    for seed in range(8):
        stops = ("the", "or")
        params = SamplingParams(max_new_tokens=60, temperature=1.5, seed=seed, stop=stops, logprobs=1)
        events = list(stream(loaded, "in the", params))
        one, text, tokens = answer(loaded, stops=stops), "", []
        for event in events:
            delta = one.take(event)
            text += delta.text
            tokens += delta.tokens
            assert (delta.provisional is None) == isinstance(event, Committed | Finished)
        last = events[-1]
        assert isinstance(last, Finished)
        assert (text, tokens) == (last.completion.text, last.completion.tokens)
        assert tuple(one.logprobs) == last.completion.logprobs
        assert one.completion == last.completion


def test_a_policy_that_returns_the_prompt_answers_with_what_is_behind_it(loaded: LoadedModel) -> None:
    one = answer(loaded)
    one.take(Committed(request_id=0, block=0, tokens=(40, 41)))
    completion = Completion(
        tokens=[1, 2, 40, 41],
        text="with the prompt",
        forwards=Forwards(),
        finish_reason="stop",
        num_tokens=2,
        seconds=1,
    )
    one.take(Finished(request_id=0, completion=completion))
    assert one.text == loaded.decode([40, 41])


def test_usage_counts_prompts_once_and_what_is_told(loaded: LoadedModel) -> None:
    forwards = Forwards(prefill=1, denoise=3)
    completion = Completion(
        tokens=[40, 41], text=None, forwards=forwards, finish_reason="stop", num_tokens=3, seconds=1, reused_tokens=4
    )
    answers = [answer(loaded, 0), answer(loaded, 1)]
    for number, each in enumerate(answers):
        each.take(Committed(request_id=0, block=0, tokens=(40, 41)))
        drafts = DraftCounts(cycles=1, tokens=2, verified_at=(1,), accepted_at=(1,)) if number else None
        each.take(Finished(request_id=0, completion=replace(completion, drafts=drafts)))
    usage = usage_of([(1, 2)], answers)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.counted, usage.reused) == (2, 4, 6, 8)
    assert usage.forwards == Forwards(prefill=2, denoise=6)
    assert usage.drafts is not None
    assert (usage.drafts.drafted, usage.drafts.accepted) == (1, 1)
    assert usage_of([(1, 2)], answers[:1]).drafts is None


def test_provisional_events_change_nothing(loaded: LoadedModel) -> None:
    one = answer(loaded)
    event = Denoised(request_id=0, block=0, positions=(2,), tokens=(40,), confidences=(0.5,), open_positions=())
    assert one.take(event).provisional is event
    assert (one.tokens, one.text) == ([], "")
