"""Step maps: a file gives back every event, and the events lead to the tokens, under every policy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.decode.engine import Engine, stream
from difflm.decode.events import Committed, Denoised, Drafted, Edited, Event, Finished
from difflm.decode.policies.named import policy
from difflm.decode.policies.verified import Verified
from difflm.decode.recorder import Cell, StepMap, append_step_maps, read_step_maps, recorder_of
from difflm.decode.request import SamplingParams
from difflm.errors import DataError
from tests.decode.drafting import answer, causal, mixed, pair, redrafting
from tests.decode.tiny import MASK, VOCAB, certain, scripted, tiny
from tests.golden import golden

CASES = golden.cases("generate")["cases"][::4]


def recorded(loaded: LoadedModel, prompt: list[int], params: SamplingParams) -> tuple[StepMap, list[Event]]:
    """Return the step map of a request and its events."""
    recorder = recorder_of(loaded, prompt, params)
    events = list(recorder.watching(stream(loaded, prompt, params)))
    return recorder.map, events


def alone(event: Event) -> Event:
    """Return the event as a file gives it back."""
    if isinstance(event, Finished):
        event = replace(event, completion=replace(event.completion, logprobs=None))
    if isinstance(event, Committed):
        event = replace(event, logprobs=None)
    return replace(event, request_id=0)


POLICIES: list[dict[str, Any]] = [
    {},
    {"threshold": 0.2, "editing_threshold": 0.0, "max_post_steps": 4},
    {"decoding": "next_token"},
    {"temperature": 1.0, "seed": 5, "logprobs": 2},
    {"policy": policy("hf20", gen_length=11, block_length=4)},
    {"policy": policy("hf20-greedy", gen_length=3, block_length=4, minimal_topk=4)},
    {"policy": policy("hf21", gen_length=9, block_length=4, threshold=0.3, editing_threshold=0.1)},
    {"policy": policy("sglang", threshold=0.3)},
    {"policy": policy("sglang", threshold=0.3, edit_threshold=0.0, penalty_lambda=2.0)},
    {"policy": policy("dinfer", threshold=0.3, use_credit=True, max_forwards=30)},
    {"policy": policy("dinfer", parallel_decoding="hierarchy")},
    {"policy": policy("native", fixed=3)},
]


@pytest.mark.parametrize("settings", POLICIES, ids=str)
def test_the_events_come_back_from_a_file_and_lead_to_the_tokens(settings: dict[str, Any], tmp_path: Path) -> None:
    path, maps = tmp_path / "maps.jsonl", []
    for seed in range(6):
        loaded = tiny(seed, eos=(3,), block_size=4)
        params = SamplingParams(max_new_tokens=10, **settings)
        each, events = recorded(loaded, list(range(4, 4 + seed)) or [5], params)
        assert each.events == tuple(alone(event) for event in events)
        assert each.completion.tokens == each.replayed()[len(each.prompt) :][: len(each.completion.tokens)]
        maps.append(each)
    append_step_maps(path, maps[:2])
    append_step_maps(path, maps[2:])
    assert read_step_maps(path) == maps
    assert [row["policy"] for row in map(json.loads, path.read_text().splitlines())] == [each.policy for each in maps]


@pytest.mark.parametrize("check", ["same", "ratio"])
@pytest.mark.parametrize("fused", [True, False])
def test_drafts_come_back_from_a_file_and_the_map_is_that_of_the_text(check: str, fused: bool, tmp_path: Path) -> None:
    path, maps, drafted = tmp_path / "maps.jsonl", [], 0
    for seed in range(4):
        loaded, prompt = causal(seed, eos=(3,), block_size=5, logit_shift=seed % 2 > 0), [1, 2, 4 + seed]
        drafting = {"fused": fused, "check": check, "fallback": False}
        verified, plain = pair(sampling={"temperature": 1.0}, drafting=drafting, max_new_tokens=12, logprobs=1)
        recorder, engine = recorder_of(loaded, prompt, verified), Engine(loaded)
        if check == "same":
            redrafting(engine, mixed(prompt, answer(loaded, prompt, plain).tokens))
        events = list(recorder.watching(engine.stream(prompt, verified)))
        each = recorder.map
        assert each.events == tuple(alone(event) for event in events)
        assert each.completion.drafts is not None
        assert (each.policy, each.block_size, each.mask_id) == (repr(each_drafting(verified, 5)), 1, MASK)
        assert each.replayed()[:3] == prompt
        assert each.replayed()[3:][: len(each.completion.tokens)] == each.completion.tokens
        assert all(cell.step == 1 for cell in each.cells()[3:]), "every token is written once"
        written = 3
        for event in events:
            if isinstance(event, Denoised):
                written += len(event.positions)
            elif isinstance(event, Drafted):
                assert event.positions == tuple(range(written, written + len(event.tokens)))
                assert len(event.confidences) == len(event.tokens)
                drafted += 1
        maps.append(each)
    append_step_maps(path, maps)
    assert read_step_maps(path) == maps
    assert drafted > 4
    lines = path.read_text().splitlines()
    assert {event["event"] for line in lines for event in json.loads(line)["events"]} == {
        "denoised",
        "drafted",
        "committed",
    }


def each_drafting(params: SamplingParams, window: int) -> Verified:
    """Return the policy of verified parameters, with the window that the model gives it."""
    assert isinstance(params.policy, Verified)
    return replace(params.policy, window=window)


def test_the_recorded_runs_of_the_released_code_are_replayed(tmp_path: Path) -> None:
    loaded = load_model(golden.checkpoint("llada2", tmp_path / "llada2"))
    engine, recorders = Engine(loaded, max_requests=len(CASES)), {}
    for case in CASES:
        params = SamplingParams(policy=policy(case["mode"], **case["settings"]), seed=case.get("seed", 0))
        recorders[engine.submit(case["prompt"], params)] = recorder_of(loaded, case["prompt"], params)
    done, edits = 0, 0
    while done < len(CASES):
        for event in engine.step():
            recorders[event.request_id].apply(event)
            done += isinstance(event, Finished)
            edits += isinstance(event, Edited)
    assert edits > 10
    for case, recorder in zip(CASES, recorders.values(), strict=True):
        start = 0 if "prompt_included_in_output" in case["flags"] else len(case["prompt"])
        assert recorder.map.replayed()[start:][: len(case["output"])] == case["output"], case["id"]
        forwards = sum(isinstance(event, Denoised) for event in recorder.events)
        assert forwards == case["num_forwards"], case["id"]


def test_cells_say_when_and_how_surely() -> None:
    # Two sure positions, one less sure, and an edge behind the limit.
    confidence = {3: 0.6, 4: 0.99, 5: 0.99, 6: 0.4}
    loaded = scripted(lambda place: certain(place % VOCAB, confidence.get(place, 0.99)), block_size=4)
    each, _ = recorded(loaded, [1, 2, 1], SamplingParams(max_new_tokens=4, threshold=0.9, block_size=4))
    cells = each.cells()
    assert [cell.position for cell in cells] == list(range(8))
    assert [cell.step for cell in cells] == [0, 0, 0, 1, 1, 1, 2, 0]
    assert [cell.token for cell in cells] == [1, 2, 1, 3, 4, 5, 6, None]
    assert cells[0] == Cell(position=0, token=1)
    sure = [cell.confidence for cell in cells[3:7]]
    assert sure == pytest.approx([0.6, 0.99, 0.99, 0.4], abs=1e-3)
    assert cells[7].confidence is None


def test_an_edit_keeps_the_step_of_the_first_writing_and_an_opened_position_is_open() -> None:
    header = StepMap(model="m", policy="p", seed=0, block_size=2, mask_id=MASK, prompt=(1,))

    def filled(token: int) -> Denoised:
        return Denoised(request_id=0, block=0, positions=(1,), tokens=(token,), confidences=(0.5,), open_positions=())

    nothing = Denoised(request_id=0, block=0, positions=(), tokens=(), confidences=(), open_positions=())

    def edited(before: int, token: int) -> Edited:
        return Edited(request_id=0, block=0, positions=(1,), before=(before,), tokens=(token,), confidences=(0.9,))

    once = replace(header, events=(filled(5), nothing, edited(5, 6)))
    assert once.cells()[1] == Cell(position=1, token=6, step=1, confidence=0.9, edits=1)
    reopened = replace(header, events=(*once.events, edited(6, MASK)))
    assert reopened.cells()[1].token is None
    assert reopened.replayed() == [1, MASK]
    assert replace(header, events=(*reopened.events, filled(7))).replayed() == [1, 7]


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", '{"schema": "difflm.step-map/0"}', '{"schema": "difflm.step-map/1"}']
)
def test_what_is_no_step_map_is_said(line: str, tmp_path: Path) -> None:
    path = tmp_path / "maps.jsonl"
    append_step_maps(path, [recorded(tiny(), [1], SamplingParams(max_new_tokens=2))[0]])
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(DataError, match=r"maps\.jsonl, line 2: no step map; difflm generate --step-map writes them"):
        read_step_maps(path)
    path.write_text("")
    with pytest.raises(DataError, match="it holds no step map"):
        read_step_maps(path)
