"""What is told of the way to an answer: positions of the answer, bounds of its blocks, and never more than so much."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from difflm.checkpoints.loading import LoadedModel
from difflm.decode.engine import stream
from difflm.decode.events import Committed, Denoised, Drafted, Edited
from difflm.decode.policies.named import parse_policy
from difflm.decode.request import SamplingParams
from difflm.serving import answering
from difflm.serving.answers import Answer
from difflm.serving.denoising import MOST_GUESSES, committed_object, provisional_object
from difflm.serving.pieces import Pieces
from difflm.serving.texts import GrowingText
from tests.serving.servers import Running
from tests.serving.test_endpoints import HELLO, events

ASKED: dict[str, Any] = {"messages": HELLO, "max_tokens": 20, "temperature": 1, "seed": 1}
WATCHED: dict[str, Any] = {**ASKED, "stream_options": {"denoising": True}}


def answer(loaded: LoadedModel, **facts: Any) -> Answer:
    growing = GrowingText(loaded.decode)
    return Answer(loaded=loaded, index=3, prompt=(9, 9, 9, 9), seed=0, growing=growing, **facts)


def test_provisional_tokens_stand_where_the_answer_has_them(loaded: LoadedModel) -> None:
    pieces, one = Pieces(loaded.tokenizer), answer(loaded, block_size=8)
    common: dict[str, Any] = {"positions": (5, 6), "tokens": (40, 41), "confidences": (0.5, 0.25)}
    denoised = Denoised(request_id=0, block=0, open_positions=(4, 7), guesses=((7, 42, 1 / 3),), **common)
    one.take(denoised)
    bounds = {"block": 0, "block_start": -4, "block_stop": 4}
    assert provisional_object(denoised, one, pieces) == {
        "index": 3,
        "event": "denoised",
        "forward": 1,
        **bounds,
        "positions": [1, 2],
        "tokens": [40, 41],
        "texts": [pieces.text_of(40), pieces.text_of(41)],
        "confidences": [0.5, 0.25],
        "open_positions": [0, 3],
        "guesses": {"positions": [3], "tokens": [42], "texts": [pieces.text_of(42)], "confidences": [0.3333]},
    }
    edited = provisional_object(Edited(request_id=0, block=1, before=(1, 2), **common), one, None)
    assert (edited["event"], edited["texts"], edited["before"], edited["block_start"]) == ("edited", [], [1, 2], 4)
    drafted = provisional_object(Drafted(request_id=0, **common), one, pieces)
    assert (drafted["positions"], drafted["forward"]) == ([1, 2], 1)
    assert not {"block", "guesses", "open_positions"} & drafted.keys()


def test_final_tokens_stand_behind_those_before(loaded: LoadedModel) -> None:
    one = answer(loaded, block_size=2)
    one.take(Committed(request_id=0, block=2, tokens=(40, 41)))
    told = committed_object(one.take(Committed(request_id=0, block=3, tokens=(42,))), one, None)
    assert told["positions"] == [2]
    assert (told["block"], told["block_start"], told["block_stop"]) == (3, 2, 4)


def test_guesses_are_bounded(loaded: LoadedModel) -> None:
    guesses = tuple((place, 40, 0.5) for place in range(4, 260))
    event = Denoised(
        request_id=0,
        block=0,
        positions=(),
        tokens=(),
        confidences=(),
        open_positions=tuple(range(4, 260)),
        guesses=guesses,
    )
    assert provisional_object(event, answer(loaded), None)["guesses"]["positions"] == list(range(MOST_GUESSES))


@pytest.mark.parametrize("policy", [None, "hf20:steps=4", "hf21:threshold=0.5", "sglang:threshold=0.6", "dinfer"])
def test_guesses_are_asked_for_and_change_nothing(policy: str | None, loaded: LoadedModel) -> None:
    chosen = None if policy is None else parse_policy(policy)
    plain, told = (
        list(stream(loaded, "in the", SamplingParams(max_new_tokens=20, seed=1, guesses=guesses, policy=chosen)))
        for guesses in (False, True)
    )
    found = 0
    for one, other in zip(plain[:-1], told[:-1], strict=True):
        if isinstance(one, Denoised):
            assert isinstance(other, Denoised)
            assert one.guesses == ()
            assert [place for place, _, _ in other.guesses] == list(other.open_positions)
            found += len(other.guesses)
        else:
            assert one == other
    assert found


def test_a_stream_tells_all_that_a_canvas_needs(server: Running) -> None:
    told = [each["diffusion"] for each in events(server, "/v1/chat/completions", WATCHED) if "diffusion" in each]
    cells: dict[int, int] = {}
    final: dict[int, int] = {}
    forward = 0
    for each in told:
        assert set(range(20)) >= set(each["positions"])
        assert all(each["block_start"] <= place < each["block_stop"] for place in each["positions"])
        pairs = dict(zip(each["positions"], each["tokens"], strict=True))
        if each["event"] == "denoised":
            forward += 1
            assert not cells.keys() & set(each["open_positions"])
            assert each["guesses"]["positions"] == each["open_positions"]
            cells |= pairs
        else:
            assert each["event"] == "committed"
            assert pairs == {place: cells[place] for place in pairs}
            final |= pairs
        assert each["forward"] == forward
    assert sorted(final) == list(range(20))
    whole = server.post("/v1/chat/completions", ASKED).json()
    assert forward == whole["choices"][0]["diffusion"]["forwards"]["denoise"]


def test_without_it_a_stream_has_nothing_of_it(server: Running) -> None:
    assert not [each for each in events(server, "/v1/chat/completions", ASKED) if "diffusion" in each]
    plans = server.service.planner.chat(json.dumps({**ASKED, "stream": True}).encode()).orders
    assert [order.params.guesses for order in plans] == [False]


def test_a_reader_that_is_far_behind_gets_no_guesses(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a slow reader is bounded by its answer; the text and what is decided come all the same."""
    monkeypatch.setattr(answering, "MOST_BEHIND", 3)
    told = list(stream(loaded, "in the", SamplingParams(max_new_tokens=20, guesses=True)))

    class Ticket:
        started = 0.0

        async def events(self) -> Any:
            for event in told:
                yield event

    async def read() -> list[Any]:
        class Plan:
            answers = (answer(loaded),)
            orders = (None,)

        class Bridge:
            def cancel(self, ticket: Any) -> None:
                pass

        limits: Any = type("Limits", (), {"queue_seconds": 60, "answer_seconds": 60})
        plan: Any = Plan
        found = answering.deltas(plan, [Ticket()], Bridge(), limits)  # type: ignore[arg-type, list-item]
        return [delta async for delta in found]

    deltas = asyncio.run(read())
    assert len(deltas) == len(told)
    kept = [each.provisional.guesses for each in deltas if isinstance(each.provisional, Denoised)]
    assert kept[0]
    assert not any(kept[4:])
