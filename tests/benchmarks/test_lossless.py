"""The parts of `benchmarks.lossless` that are computed: who is compared with whom, what is counted, which side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lossless import ablation, completions, equality, prompts, speed, summary
from benchmarks.lossless.records import Results, table
from benchmarks.lossless.topics import TEMPLATES, TOPICS
from difflm.errors import DifflmError


def item(system: str, number: int, seconds: float, **more: Any) -> dict[str, Any]:
    way = more.pop("way", "next token")
    about = {"name": system, "system": f"{system} (float32)", "way": way, "dtype": "float32"}
    row = {"kind": "item", "item": number, "of": "qa", "num_tokens": 10, "tokens": [number], "seconds": seconds}
    return {**row, **about, **more}


DRAFTS = {"cycles": 2, "tokens": 7, "verified_at": [2, 2], "accepted_at": [2, 1]}
ROWS = [
    item("next token", 0, 2.0),
    item("next token", 1, 2.0),
    item("transformers", 0, 4.0, way="transformers"),
    item("transformers", 1, 4.0, way="transformers"),
    item("verified", 0, 0.5, way="verified", drafts=DRAFTS, forwards=4),
]


def test_the_ratio_is_of_all_tokens_over_all_seconds_on_the_items_that_both_have() -> None:
    items = summary.grouped(ROWS)
    plain, drafted = items["next token (float32)"], items["verified (float32)"]
    assert summary.ratio(plain, drafted) == 4.0
    assert summary.ratio(plain, {}) is None
    assert (
        summary.ratio({0: item("a", 0, 1.0), 1: item("a", 1, 5.0)}, {0: item("b", 0, 2.0), 1: item("b", 1, 1.0)}) == 2
    )
    assert summary.ratio({0: item("a", 0, 1.0)}, {0: item("b", 0, 1.0, num_tokens=20)}) == 2


def test_the_yardstick_is_the_fastest_system_without_drafts() -> None:
    items = summary.grouped([*ROWS, {**item("next token", 0, 1.0), "system": "next token (int8)", "dtype": "int8"}])
    assert summary.fastest(items, "float32") == "next token (float32)"
    assert summary.fastest(items) == "next token (int8)"
    assert summary.fastest(items, "bfloat16") is None


def test_answers_are_compared_token_for_token_in_their_own_dtype() -> None:
    items = summary.grouped([*ROWS, item("verified", 1, 0.5, way="verified", tokens=[7])])
    assert summary.same_answers(items, "verified (float32)") == "1/2"


def test_the_tables_have_a_line_per_system_and_kind() -> None:
    lines = summary.speed_table(ROWS).splitlines()
    assert lines[2] == "| next token | float32 | 2 | 5.00 | 1.00 | 1.00 |  |  | 2/2 |"
    assert lines[4] == "| verified | float32 | 1 | 20.00 | 4.00 | 4.00 | 3.50 | 2.50 | 1/1 |"
    assert summary.place_table(ROWS).splitlines()[2] == "| verified (float32) | 1.00 | 0.50 |"
    assert summary.kind_table(ROWS).splitlines()[2] == (
        "| qa | verified (float32) | 1 | 3.50 | 1.0 0.5 | 4.00 | 4.00 | 0/1 |"
    )
    assert "exact match" in summary.speed_table([{**row, "correct": True} for row in ROWS])


def test_a_request_more_than_5_percent_slower_is_counted() -> None:
    slow = [item("next token", each, 1.0) for each in (0, 1)]
    slow += [item("verified", 0, 1.06, way="verified"), item("verified", 1, 1.04, way="verified")]
    assert summary.kind_table(slow).splitlines()[2].endswith("| 0.94 | 1/2 |")


def test_tokens_of_rests_are_no_tokens_of_cycles() -> None:
    assert summary.per_cycle([{"drafts": DRAFTS, "num_tokens": 100}]) == 3.5
    assert summary.per_cycle([{"num_tokens": 5}]) is None


def test_the_grid_has_our_8_bit_weights_in_our_engine_alone() -> None:
    found = speed.systems(["float32", "int8"], [4, 8], ["never", "auto"], others=True)
    assert [each.way for each in found if each.dtype == "int8"] == ["next token", *["verified"] * 4]
    assert len(found) == len({each.key for each in found}) == 11


def test_results_go_on_and_refuse_another_subject(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    Results(path, {"adapter": "a", "windows": (4,)}).add({"kind": "item", "system": "x", "item": 3})
    path.write_text(path.read_text() + '{"kind": "it')  # cut short
    again = Results(path, {"adapter": "a", "windows": (4,)})
    assert again.done("item", "system", "item") == {("x", 3)}
    assert [json.loads(line)["kind"] for line in path.read_text().splitlines()] == [
        *("subject", "environment", "item", "environment")
    ]
    with pytest.raises(DifflmError, match="another adapter; choose another --results"):
        Results(path, {"adapter": "b", "windows": (4,)})


def test_tables_are_markdown() -> None:
    assert table(["a", "b"], [[1.234, None]]) == "| a | b |\n|---|---|\n| 1.23 |  |"


def test_answers_differ_where_they_first_differ() -> None:
    assert equality.first_difference([1, 2, 3], [1, 2, 3]) is None
    assert equality.first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert equality.first_difference([1, 2], [1, 2, 3]) == 2


def test_a_difference_of_clear_logits_is_told_from_a_tie() -> None:
    rows = [{"kind": "answer", "mode": "greedy", "prompt": str(each), "same": True, "tokens": 4} for each in range(2)]
    rows += [{**rows[0], "same": False, "first": 1, "margin": margin} for margin in (1e-5, 0.5)]
    lines = equality.summary(rows).splitlines()
    assert lines[2] == "| greedy | 4 | 16 | 2/4 | 1 | 5.00e-01 |  |  |"
    assert lines[-1] == "| greedy | 0 | 1 | 5.00e-01 |"
    rows[-1]["margin"] = 0.375
    lines = equality.summary([{"kind": "subject", "dtype": "bfloat16"}, *rows]).splitlines()
    assert lines[2] == "| greedy | 4 | 16 | 2/4 | 0 | 3.75e-01 |  |  |"


def test_no_topic_is_on_two_sides() -> None:
    found = prompts.templated()
    assert len(found) == len({each.id for each in found}) == len(TEMPLATES) * len(TOPICS)
    sides: dict[str, set[str]] = {}
    for topic in TOPICS:
        sides[topic] = {prompts.prompt_of(kind, text.format(topic=topic), topic=topic).side for kind, text in TEMPLATES}
    assert all(len(each) == 1 for each in sides.values())
    counts = {side: sum(each.side == side for each in found) for side in ("train", "validation", "test")}
    assert counts["train"] > 4000
    assert min(counts["validation"], counts["test"]) > 200


def test_a_choice_of_prompts_has_all_kinds_and_begins_with_a_smaller_one() -> None:
    found = prompts.templated()
    few, more = prompts.spread(found, 14), prompts.spread(found, 30)
    assert more[:14] == few
    assert len({each.kind for each in few}) == min(14, len({each.kind for each in found}))


def test_prompts_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "one", "kind": "code"}\n\n{"prompt": "two"}\n')
    assert [(each.kind, each.text) for each in prompts.own_prompts(path)] == [("code", "one"), ("prompt", "two")]
    path.write_text('{"text": "one"}\n')
    with pytest.raises(DifflmError, match=r'p.jsonl:1: no field "prompt"'):
        prompts.own_prompts(path)


def test_test_prompts_are_never_answered_and_only_training_prompts_twice() -> None:
    found = prompts.templated()
    plan = completions.Plan(sampled_share=0.25)
    asked = completions.wanted(found, plan)
    assert not any(each.side == "test" for each, _ in asked)
    sampled = [each for each, mode in asked if mode == "sampled"]
    assert {each.side for each in sampled} == {"train"}
    assert 0.2 < len(sampled) / sum(each.side == "train" for each in found) < 0.3


def test_curves_take_the_last_of_two_rows_for_the_same_tokens() -> None:
    def point(tokens: int, value: float) -> dict[str, Any]:
        row = {"kind": "validation", "setting": "a", "num_tokens": tokens, "cpu_seconds": 1.0}
        return {**row, "tokens_per_cycle": value, "agreement": {"2": 0.5}}

    rows = [point(0, 2.0), point(10, 2.5), point(10, 3.0), {"kind": "run", "setting": "a"}]
    assert [row["tokens_per_cycle"] for row in ablation.curves(rows)["a"]] == [2.0, 3.0]
    assert "| a | 10 | 1.00 | 3.00 | 0.50 |  |  |  |" in ablation.summary(rows)


def test_the_cost_of_a_token_leaves_the_first_step_out() -> None:
    clock = ablation.Clock(setting="x")
    clock.steps = [(10, 100.0), (20, 101.0), (30, 102.0)]
    assert clock.cost == pytest.approx(0.1)
    clock.steps = clock.steps[:1]
    with pytest.raises(DifflmError, match="the trial had 1 steps"):
        _ = clock.cost
