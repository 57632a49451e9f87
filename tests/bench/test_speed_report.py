"""The report of the speed benchmark: medians, paired ratios, goals, and from which TPF on blocks are faster."""

from __future__ import annotations

from typing import Any

import pytest

from difflm.bench.speed_report import fitted, markdown_table, rate, speed_markdown
from difflm.bench.speed_systems import ENGINE, LOOP, NEXT_TOKEN


def system(tokens: int, *seconds: float, forwards: int = 1) -> dict[str, Any]:
    return {"tokens": tokens, "forwards": forwards, "seconds": list(seconds)}


def result(**cases: Any) -> dict[str, Any]:
    settings = {
        "model": "here/tiny", "prompt": 64, "repeats": 3, "rows": [1, 32], "schedules": [1, 4, 16], "forwards": 8,
        "lengths": [64, 256, 1024], "batches": [1, 16],
    }  # fmt: skip
    machine = {"processor": "P", "cores": 2, "torch": "t", "transformers": "h", "commit": "c"}
    return {"settings": settings, "environment": machine, "cases": {k.replace("__", ", "): v for k, v in cases.items()}}


def test_a_straight_line_is_found_and_never_starts_below_zero() -> None:
    assert fitted([(1, 0.3), (4, 0.9), (16, 3.3)]) == pytest.approx((0.1, 0.2))
    start, slope = fitted([(1, 0.1), (2, 0.4)])
    assert start == 0.0
    assert 0.1 < slope < 0.2


def test_from_which_tokens_per_forward_blocks_are_faster() -> None:
    """A block takes 100 ms + 200 ms S; 32 next tokens take 1.7 s, so S = 8 is as fast: 4 tokens per forward."""
    systems = {f"S={s}": system(32, 0.1 + 0.2 * s) for s in (1, 4, 16)}
    cases = {"schedules, float32": {"threads": 1, "systems": {**systems, NEXT_TOKEN: system(32, 1.7)}}}
    text = speed_markdown({**result(), "cases": cases})
    assert "32 tokens take 1700 ms; S = (1700 - 100) / 200.0 = 8.0: blocks are faster **from TPF 4.0** on." in text
    assert "| S = 4 | 8 | 1 | 35.6 | 1.89 |" in text
    for seconds, said in ((0.2, "a block in one forward is still slower"), (60.0, "at every TPF from 1 on")):
        cases["schedules, float32"]["systems"][NEXT_TOKEN] = system(32, seconds)
        assert said in speed_markdown({**result(), "cases": cases})


def test_goals_against_the_loop_are_paired_by_repeat() -> None:
    setting = {"precision": "int8", "threads": 2}
    case = {
        LOOP: {**system(256, 10.0, 40.0, 90.0), **setting},
        f"{ENGINE}, set as the loop": {**system(256, 2.5, 8.0, 90.0), **setting},
        ENGINE: {**system(256, 1.0, 4.0, 9.0), **setting},
    }
    text = speed_markdown({**result(), "cases": {"loop, 256 tokens": case}})
    assert "| 256 | int8, 2 | 6.40 | 32.0 | 4.0 | >= 4: met | 10.0 | 3 |" in text
    case[LOOP]["seconds"] = [7.9, 39.0, 90.0]
    assert "| 3.2 | >= 4: missed |" in speed_markdown({**result(), "cases": {"loop, 256 tokens": case}})


def test_the_share_of_what_bare_forwards_allow() -> None:
    cases = {
        f"batch, {count} requests": {"tokens": 64 * count, "seconds": [seconds], "bare_seconds": [bare]}
        for count, seconds, bare in ((1, 1.0, 0.9), (16, 4.0, 3.0))
    }
    text = speed_markdown({**result(), "cases": cases})
    assert "| 1 | 64.0 | 1.00 | 71.1 | 90% | >= 80%: met |" in text
    assert "| 16 | 256.0 | 4.00 | 341.3 | 75% | >= 80%: missed |" in text


def test_profile_trials_and_forwards() -> None:
    cases = {
        "left out": {"int8": "weights: no"},
        "forward, 2 threads": {"float32": {"1": 10.0, "32": 25.0}},
        "trials": {
            "best": {ENGINE: {"precision": "int8", "threads": 2, "tokens_per_second": 40.0}},
            "left_out": {LOOP: "too slow"},
            "llama_cpp": "1.2",
        },
        "profile, int8": {
            "engine_over_model": 0.08,
            "operators_per_forward": 1000.0,
            "empty_operator_us": 2.0,
            "seconds": 0.2,
            "forwards": 10,
            "operators": [{"name": "aten::mm", "calls": 5, "share": 0.5}],
        },
    }
    text = speed_markdown({**result(), "cases": cases})
    for said in (
        "# Speed of decoding: tiny",
        "Left out: weights: no.",
        "| 32 | 25.0 (2.50) |",
        "| difflm, blocks | int8 | 2 | 40.0 |",
        "llama-cpp-python 1.2",
        f"Not measured: {LOOP}: too slow.",
        "8.0% of the time in them (goal: < 10%, met)",
        "10% of a forward is calling them",
        "| `aten::mm` | 5 | 50.0% |",
    ):
        assert said in text
    assert "## Against" not in text
    assert rate(system(10, 1.0, 2.0, 5.0)) == 5.0
    assert markdown_table(["a", "b"], [["1", "2"]]) == ["| a | b |", "| --- | ---: |", "| 1 | 2 |", ""]
