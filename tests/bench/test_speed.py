"""The benchmark of forced schedules on tiny models: every case, resumed, refused, left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from difflm.bench import speed, speed_cases
from difflm.bench.speed import SpeedSettings, bench_speed
from difflm.bench.speed_systems import TINY_LLADA2, Subject
from difflm.errors import ConfigError

TINY = SpeedSettings(
    model=TINY_LLADA2, precisions=("float32", "int8"), threads=(1,), schedules=(8, 32), new_tokens=32, lengths=(32,),
    batches=(2,), rows=(1, 8), repeats=1, prompt=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    path = tmp_path_factory.mktemp("speed") / "speed.jsonl"
    return bench_speed(TINY, path), path


def test_every_case_is_a_line(ran: tuple[dict[str, Any], Path]) -> None:
    result, path = ran
    first, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert first["settings"]["model"] == TINY_LLADA2
    assert {each["case"]: each["figures"] for each in lines} == result["cases"]
    assert list(result["cases"]) == [
        "left out",
        "forward, 1 threads",
        "trials",
        "schedules, float32",
        "loop, 32 tokens",
        "batch, 2 requests",
        "profile, float32",
    ]
    assert "experts" in result["cases"]["left out"]["int8"]


def test_an_interrupted_run_goes_on_with_the_next_case(
    ran: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, path = ran
    lines = path.read_text().splitlines(keepends=True)
    torn = tmp_path / "torn.jsonl"
    torn.write_text("".join(lines[:-1]) + lines[-1][:20])
    asked: list[str] = []

    def cheap(*args: object) -> dict[str, Any]:
        asked.append("profile")
        return {"operators": []}

    monkeypatch.setattr(speed_cases, "profile", cheap)
    monkeypatch.setattr(Subject, "refusal", lambda self, precision: "no" if precision == "int8" else None)
    again = bench_speed(TINY, torn)
    assert asked == ["profile"]
    assert again["cases"] == {**result["cases"], "profile, float32": {"operators": []}}
    assert bench_speed(TINY, torn) == again


def test_other_settings_need_another_file(ran: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="begun with other settings"):
        bench_speed(replace(TINY, repeats=2), ran[1])
    with pytest.raises(ConfigError, match="repeats: 0"):
        bench_speed(replace(TINY, repeats=0), ran[1])
    monkeypatch.setattr(speed, "planned", lambda *args: [("only", lambda: {"x": 1})])
    fresh = ran[1].with_name("fresh.jsonl")
    fresh.write_text("{}\n")
    assert bench_speed(TINY, fresh, fresh=True)["cases"] == {"only": {"x": 1}}
