"""Timings: every way and system has a line, ratios are over the fastest AR one, threads are given back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import difflm
from study import speed
from study.speed import Way, measure_speed
from tests.evaluation.models import workshop

__all__ = ["workshop"]


def test_every_way_is_timed_against_the_fastest_left_to_right(workshop: Path) -> None:
    left = difflm.SamplingParams(max_new_tokens=6, decoding="next_token")
    blocks = difflm.SamplingParams(max_new_tokens=6, decoding="block", block_size=4, threshold=1.0)
    ways = [
        Way(stage="ar", model=workshop / "parent", params=left),
        Way(stage="sft", model=workshop / "model", params=blocks),
    ]
    before, said = torch.get_num_threads(), list[str]()
    prompts = [[97, 98], [99, 100, 101]]
    lines = measure_speed(ways, prompts, repeats=2, compiled=False, say=said.append)
    assert torch.get_num_threads() == before
    assert {(line["stage"], line["task"]) for line in lines} == {
        ("ar", "difflm, plain"), ("ar", "transformers"), ("sft", "difflm, plain"),
    }  # fmt: skip
    assert len(said) == len(lines)
    [unit] = {line["baseline"] for line in lines}
    assert unit in ("ar difflm, plain", "ar transformers")
    for line in lines:
        assert line["tokens"] == 12
        assert (line["prompts"], line["repeats"]) == (2, 2)
        assert line["ratio_low"] <= line["ratio"] <= line["ratio_high"]
        assert (line["ratio"] == 1.0) == (f"{line['stage']} {line['task']}" == unit)
    [sft] = [line for line in lines if line["stage"] == "sft"]
    assert sft["tpf"] == 1.0


def test_what_cannot_be_compiled_is_left_out_and_named(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = speed._system

    def broken(way: Way, model: difflm.LoadedModel, name: str, *, room: int) -> object:
        def decode(prompt: object) -> object:
            raise RuntimeError("no C++ compiler\nand more")

        return decode if name == "difflm, compiled" else made(way, model, name, room=room)

    monkeypatch.setattr(speed, "_system", broken)
    left = difflm.SamplingParams(max_new_tokens=2, decoding="next_token")
    ways = [Way(stage="ar", model=workshop / "parent", params=left)]
    lines = measure_speed(ways, [[97]], repeats=1, compiled=True, say=lambda line: None)
    [skipped] = [line for line in lines if line["kind"] == "skipped"]
    assert skipped == {
        "kind": "skipped", "stage": "ar difflm, compiled", "reason": "RuntimeError: no C++ compiler",
    }  # fmt: skip
    assert {line["task"] for line in lines if line["kind"] == "speed"} == {"difflm, plain", "transformers"}


def test_a_compiled_engine_has_room_for_one_request(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms: list[int] = []

    class Recorded:
        def __init__(self, loaded: difflm.LoadedModel, *, execution: str, cache_bytes: int, max_requests: int) -> None:
            assert (execution, max_requests) == ("compiled", 1)
            rooms.append(difflm.Engine(loaded, cache_bytes=cache_bytes).cache_tokens)

    monkeypatch.setattr(speed, "Engine", Recorded)
    way = Way(stage="sft", model=workshop, params=difflm.SamplingParams(max_new_tokens=6))
    speed._system(way, difflm.load_model(workshop / "model"), "difflm, compiled", room=70)
    assert rooms == [76]
