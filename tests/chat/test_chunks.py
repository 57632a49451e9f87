"""Chunks: events as the engine tells them, and a defect of the other side is said as one."""

from __future__ import annotations

from typing import Any

import pytest

from difflm.chat.chunks import Chunks
from difflm.decode.events import Committed, Denoised, Drafted, Edited, Event, Finished, Forwards
from difflm.display import Canvas, step_lines
from difflm.errors import RequestError

BOUNDS = {"block": 0, "block_start": -2, "block_stop": 4}
DENOISED = {"index": 0, "event": "denoised", "positions": [0, 2], "tokens": [7, 9], "texts": ["he", "o"]}
DENOISED |= {"confidences": [0.9, 0.8], "open_positions": [1, 3], **BOUNDS}
EDITED = {"index": 0, "event": "edited", "positions": [2], "tokens": [8], "texts": ["a"], "confidences": [0.7]}
EDITED |= {"before": [9], "before_texts": ["o"], **BOUNDS}
DRAFTED = {"index": 0, "event": "drafted", "positions": [4], "tokens": [7], "texts": ["he"], "confidences": [0.6]}
COMMITTED = {"index": 0, "event": "committed", "positions": [0, 1], "tokens": [7, 8], "texts": ["he", "a"], **BOUNDS}
END = {"seed": 5, "end": "stop", "forwards": {"prefill": 1, "denoise": 2, "commit": 0}, "tokens_per_forward": 1.0}


def choice(text: Any = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {} if text is None else {"content": text}, **more}]}


def chunks() -> Chunks:
    return Chunks(model="m", settings="s", clock=iter([1.0, 3.5, 4.0]).__next__)


def taken(one: Chunks, *given: Any) -> list[Event]:
    return [event for each in given for event in one.take(each)]


def test_events_are_those_of_the_engine() -> None:
    one = chunks()
    told = taken(one, {"choices": [], "diffusion": DENOISED}, {"choices": [], "diffusion": EDITED})
    assert told == [
        Denoised(
            request_id=0,
            block=0,
            positions=(2, 4),
            tokens=(7, 9),
            confidences=(0.9, 0.8),
            open_positions=(3, 5),
            num_masked=4,
        ),
        Edited(request_id=0, block=0, positions=(4,), before=(9,), tokens=(8,), confidences=(0.7,)),
    ]
    assert taken(one, {"diffusion": DRAFTED}) == [
        Drafted(request_id=0, positions=(6,), tokens=(7,), confidences=(0.6,))
    ]
    assert taken(one, {"diffusion": {**DENOISED, "index": 1}}) == []
    assert taken(one, {"diffusion": {**DRAFTED, "event": "dreamt"}}) == [], "of a later version"
    assert one.decode([7, 9, 8]) == "heoa"


def test_text_is_shown_when_it_is_told_and_tokens_are_remembered() -> None:
    one, canvas = chunks(), Canvas(lambda tokens: one.decode(tokens), lambda tokens: one.decode(tokens))
    given = [choice("", role="assistant"), {"diffusion": DENOISED}, {"diffusion": COMMITTED}, choice("h"), choice("ea")]
    for event in taken(one, *given):
        canvas.apply(event)
    assert canvas.text() == "hea"
    assert taken(one, choice(finish_reason="stop", stop_reason=0, diffusion=END)) == []
    usage = {"completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}, "diffusion": {"forwards": {}}}
    assert taken(one, {"choices": [], "usage": usage}) == []
    completion = one.finished().completion
    assert (completion.text, completion.tokens, completion.num_tokens) == ("hea", [7, 8], 3)
    assert completion.forwards == Forwards(prefill=1, denoise=2)
    assert (completion.finish_reason, completion.stopped_by, completion.seconds) == ("stop", 0, 2.5)
    assert completion.reused_tokens == 4
    found = one.step_map()
    assert found is not None
    assert (found.block_size, len(found.prompt), found.seed, found.model, found.policy) == (6, 2, 5, "m", "s")
    assert [type(event) for event in found.events] == [Denoised, Committed, Finished]
    assert step_lines(found)[-1] == "     0  ..1_1_"


def test_any_server_of_chat_completions_will_do() -> None:
    one = chunks()
    told = taken(one, choice("a", finish_reason=None), {**choice(" b"), "usage": None}, choice(finish_reason="length"))
    assert [one.decode(event.tokens) for event in told if isinstance(event, Committed)] == ["a", " b"]
    completion = one.finished().completion
    assert (completion.text, completion.finish_reason, completion.num_tokens) == ("a b", "length", 0)
    assert one.step_map() is None


@pytest.mark.parametrize(
    "chunk",
    [None, 5, [], {"choices": 5}, {"choices": [{}]}, {"diffusion": {"index": 0}}, choice(5), {"diffusion": [1]}],
    ids=str,
)
def test_what_is_no_chunk_is_said(chunk: Any) -> None:
    with pytest.raises(
        RequestError, match=r"^server: it sent what is no chunk of an answer \(.*\); is it one for chat"
    ):
        taken(chunks(), chunk)


def test_failures_are_said() -> None:
    with pytest.raises(RequestError, match=r"^server: the answer failed \(the engine failed\); ask again$"):
        taken(chunks(), {"error": {"message": "the engine\nfailed"}})
    one = chunks()
    taken(one, choice("half an ans"))
    with pytest.raises(RequestError, match="the connection ended before the answer did"):
        one.finished()
