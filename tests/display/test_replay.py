"""Step maps on a terminal."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from difflm.checkpoints.loading import LoadedModel
from difflm.decode.engine import stream
from difflm.decode.events import Denoised, Edited
from difflm.decode.policies.named import policy
from difflm.decode.recorder import StepMap, recorder_of
from difflm.decode.request import SamplingParams
from difflm.display.denoising import recording
from difflm.display.replay import LEGEND, replay_steps, step_lines
from tests.decode.tiny import VOCAB, certain, scripted
from tests.display.consoles import output, terminal
from tests.display.test_denoising import WordTokenizer


@pytest.fixture
def loaded() -> LoadedModel:
    sure = {3: 0.6, 6: 0.4, 9: 0.3}
    model = scripted(lambda place: certain(place % 6, sure.get(place, 0.99)), block_size=4)
    model.tokenizer = WordTokenizer()
    return model


def step_map(loaded: LoadedModel, **settings: float) -> StepMap:
    params = SamplingParams(max_new_tokens=7, threshold=0.9, **settings)  # pyright: ignore[reportArgumentType]
    recorder = recorder_of(loaded, [1, 2, 1], params)
    list(recorder.watching(stream(loaded, [1, 2, 1], params)))
    return recorder.map


def test_every_block_is_a_line_of_steps(loaded: LoadedModel) -> None:
    lines = step_lines(step_map(loaded))
    assert lines[0].startswith("tiny, Native(block_length=4, ")
    assert lines[1] == "prompt 3 tokens, answer 7 in 5 denoising forwards, ended by length"
    assert lines[2] == LEGEND
    assert lines[3:] == ["     0  ...1", "     4  1121", "     8  12__"]


def test_edits_are_marked_and_many_steps_counted_no_further() -> None:
    header = StepMap(model="m", policy="p", seed=0, block_size=2, mask_id=VOCAB - 1, prompt=())

    def filled(*places: int) -> Denoised:
        return Denoised(
            request_id=0,
            block=0,
            positions=places,
            tokens=(1,) * len(places),
            confidences=(0.5,) * len(places),
            open_positions=(),
        )

    edited = Edited(request_id=0, block=0, positions=(0,), before=(1,), tokens=(2,), confidences=(0.9,))
    loaded = scripted(lambda place: certain(1))
    done = step_map(loaded).events[-1]
    assert step_lines(replace(header, events=(filled(0), edited, filled(1), done)))[-1] == "     0  1!2"
    late = (*(filled() for _ in range(34)), filled(0), filled(1), done)
    assert step_lines(replace(header, events=late))[-1] == "     0  z+"


def test_a_verified_request_shows_what_each_forward_wrote() -> None:
    # With a shift, clean rows and MASK rows of a script read a place at the same position: every draft is right.
    loaded = scripted(lambda place: certain(place % 6), block_size=4, clean="causal", logit_shift=True)
    params = SamplingParams(max_new_tokens=9, policy=policy("verified", start=4, fused=False))
    recorder = recorder_of(loaded, [1, 2, 1], params)
    list(recorder.watching(stream(loaded, [1, 2, 1], params)))
    lines = step_lines(recorder.map)
    assert lines[0].startswith("tiny, Verified(window=4, start=4, fused=False, ")
    assert lines[1] == "prompt 3 tokens, answer 9 in 2 denoising forwards, ended by length"
    assert lines[2] == "2 forwards only verified; 6 of 6 drafts accepted in 2 cycles, by place: 1.00 1.00 1.00"
    assert lines[3].endswith("all but the last were drafts; .: prompt")
    # A forward that drafts writes one token, one that verifies the drafts and the token behind them.
    assert lines[4:] == ["     0  ...112341123"]
    file = io.StringIO()
    replay_steps(recorder.map, file=file)
    assert [line.split()[1] for line in file.getvalue().splitlines()] == [
        "<2>___",
        "<2><3><4><5><0>",
        "<2><3><4><5><0><1>___",
        "<2><3><4><5><0><1><2><3><4>",
    ]


def test_a_replay_away_from_a_terminal_is_the_recording_of_the_decoding(loaded: LoadedModel) -> None:
    file = io.StringIO()
    each = step_map(loaded)
    replay_steps(each, file=file)
    params = SamplingParams(max_new_tokens=7, threshold=0.9)
    # Only the space before the first token differs, which this tokenizer drops and the map keeps.
    lines = [line.split() for line in file.getvalue().splitlines()]
    assert lines == [line.split() for line in recording(loaded, stream(loaded, [1, 2, 1], params))]
    replay_steps(replace(each, pieces={}), file=file)
    assert file.getvalue().splitlines()[-1].strip() == "5  <3><4><5><0><1><2><3>"


def test_a_replay_on_a_terminal_waits_between_forwards_and_leaves_the_text(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    console, slept = terminal(), list[float]()
    monkeypatch.setattr("difflm.display.replay.Console", lambda **_: console)
    monkeypatch.setattr("difflm.display.replay.time.sleep", slept.append)
    replay_steps(step_map(loaded), seconds=0.5)
    assert slept == [0.5] * 4
    assert output(console).rstrip().endswith("on the matThe cat sat on")
