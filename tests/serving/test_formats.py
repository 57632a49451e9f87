"""JSON objects: what JSON cannot hold is not in them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from difflm.checkpoints.loading import LoadedModel
from difflm.decode.events import Completion, Forwards, TokenLogprob
from difflm.serving.answers import Answer, Usage
from difflm.serving.formats import Form, finite, usage_object
from difflm.serving.pieces import Pieces
from difflm.serving.texts import GrowingText


def form(loaded: LoadedModel, kind: str = "chat", top: int | None = 2) -> Form:
    return Form(kind=kind, id="x", created=1, model="tiny", pieces=Pieces(loaded.tokenizer), top=top)  # type: ignore[arg-type]


def scores(loaded: LoadedModel, text: str) -> list[TokenLogprob]:
    return [
        TokenLogprob(token=token, logprob=-math.inf, top=((65, -0.1), (token, -math.inf), (66, -2.0)))
        for token in loaded.encode(text)
    ]


@pytest.mark.parametrize("value", [-math.inf, math.nan, -1e9])
def test_infinities_are_a_number(value: float) -> None:
    assert finite(value) == -9999.0
    assert finite(-1.5) == -1.5


def test_log_probabilities_of_a_chat(loaded: LoadedModel) -> None:
    told = form(loaded).chat_logprobs(scores(loaded, "the word"))
    assert b"".join(bytes(each["bytes"]) for each in told["content"]) == b"the word"
    assert {len(each["top_logprobs"]) for each in told["content"]} == {2}
    assert "Infinity" not in json.dumps(told)


def test_log_probabilities_of_a_text(loaded: LoadedModel) -> None:
    told = form(loaded, "text").text_logprobs([5, *scores(loaded, "the word")], before=loaded.encode("in "), start=10)
    assert told["token_logprobs"][0] is None
    assert told["top_logprobs"][0] is None
    assert told["text_offset"][0] == 13
    assert told["text_offset"][2] > told["text_offset"][1]
    assert {len(each) for each in told["top_logprobs"][1:]} == {2}
    one = form(loaded, "text", 0).text_logprobs(scores(loaded, "the"))
    assert [list(each) for each in one["top_logprobs"]] == [[token] for token in one["tokens"]]


@pytest.mark.parametrize("end", ["stop", "length", "stuck"])
def test_ends_are_those_that_clients_know(end: Any, loaded: LoadedModel) -> None:
    answer = Answer(loaded=loaded, index=0, prompt=(1,), seed=7, growing=GrowingText(loaded.decode))
    answer.completion = Completion(
        tokens=[],
        text="",
        forwards=Forwards(denoise=2),
        finish_reason=end,
        num_tokens=3,
        seconds=1,
    )
    choice = form(loaded).whole([answer], Usage())["choices"][0]
    assert choice["finish_reason"] in ("stop", "length")
    assert choice["diffusion"] == {
        "seed": 7,
        "end": end,
        "forwards": {"prefill": 0, "denoise": 2, "commit": 0},
        "tokens_per_forward": 1.5,
    }
    assert form(loaded).closing(answer)["delta"] == {}
    assert form(loaded, "text").closing(answer)["text"] == ""


def test_usage_without_forwards() -> None:
    told = usage_object(Usage(prompt_tokens=3))
    assert told["total_tokens"] == 3
    assert told["diffusion"]["tokens_per_forward"] == 0.0
