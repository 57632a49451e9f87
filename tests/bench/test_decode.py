"""The decode benchmark on tiny models: who is compared, what is counted, who is the baseline, how it is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from difflm.bench.decode import (
    DecodeBench,
    Pass,
    Setting,
    Trial,
    bench_decode,
    best_setting,
    default_threads,
    drafts_of,
    fastest_ar,
    kept_threads,
    measured_settings,
    row_of,
    summarise,
)
from difflm.bench.systems import (
    CONVERTED,
    CONVERTED_AR,
    PARENT_ENGINE,
    PARENT_TRANSFORMERS,
    SYSTEMS,
    VERIFIED,
    Answer,
)
from difflm.checkpoints.convert import convert
from difflm.checkpoints.loading import load_model
from difflm.decode.engine import generate
from difflm.decode.events import DraftCounts
from difflm.decode.request import SamplingParams
from difflm.errors import RequestError
from tests.standins import write_parent


def test_every_system_answers_the_same_prompts_to_the_same_length(result: DecodeBench) -> None:
    assert [row.setting.system for row in result.rows] == list(SYSTEMS)
    assert [row.tokens for row in result.rows] == [24, 24, 24]
    assert (result.prompts, result.prompt_tokens, result.repeats) == (2, len("in the beginning") + 3, 2)


def test_forwards_are_those_of_each_algorithm(result: DecodeBench) -> None:
    converted, engine, transformers = result.rows
    # 16 prompt tokens: blocks of 8 and 4 new positions, 3 a forward; 3 prompt tokens: 5 and 7 new positions.
    assert (converted.prefill, converted.denoise, converted.commit) == (1, 3 + 2 + 2 + 3, 0)
    assert converted.tokens_per_forward == pytest.approx(24 / 10)
    for row in (engine, transformers):
        assert (row.prefill, row.denoise, row.commit) == (0, 24, 0)
        assert row.tokens_per_forward == 1.0


def test_transformers_and_the_engine_agree_on_the_parent(result: DecodeBench) -> None:
    assert result.same_ar_answers == 2


def test_the_baseline_is_the_fastest_ar_system_and_ratios_refer_to_it(result: DecodeBench) -> None:
    rows = {row.setting.system: row for row in result.rows}
    assert result.baseline in (PARENT_ENGINE, PARENT_TRANSFORMERS)
    assert rows[result.baseline].ratio == 1.0
    assert rows[result.baseline].ratio_range == (1.0, 1.0)
    assert rows[result.baseline].tokens_per_second == max(
        rows[name].tokens_per_second for name in (PARENT_ENGINE, PARENT_TRANSFORMERS)
    )


def test_transformers_stops_at_an_eos_and_counts_it(tmp_path: Path) -> None:
    parent = write_parent(tmp_path / "parent")
    loaded = load_model(parent)
    params = SamplingParams(decoding="next_token", max_new_tokens=6)
    tokens = generate(loaded, [[1, 2, 3]], params)[0].tokens
    # The last token that the parent would write becomes its EOS.
    ends = 1 + tokens.index(tokens[-1])
    config = json.loads((parent / "config.json").read_text())
    (parent / "config.json").write_text(json.dumps({**config, "eos_token_id": tokens[-1]}))
    convert(parent, tmp_path / "converted", block_size=4)
    result = bench_decode(
        tmp_path / "converted",
        parent,
        [[1, 2, 3]],
        params=SamplingParams(max_new_tokens=6),
        dtypes=("float32",),
        threads=(1,),
        repeats=1,
    )
    assert [row.tokens for row in result.rows[1:]] == [ends, ends]
    assert result.same_ar_answers == 1


def test_refusals(models: tuple[Path, Path]) -> None:
    for prompts, repeats, said in (([], 1, "prompts"), ([[1]], 0, "repeats"), ([[10_000]], 1, "10000")):
        with pytest.raises(RequestError, match=said):
            bench_decode(*models, prompts, repeats=repeats, threads=(1,))


def answers(*counts: int) -> tuple[Answer, ...]:
    return tuple(Answer((), count, 1, 2, 0) for count in counts)


def test_ratios_are_paired_by_repeat() -> None:
    setting = Setting(system=CONVERTED, dtype="float32", threads=1)
    mine = [Pass(answers(10, 10), seconds) for seconds in (1.0, 2.0, 4.0)]
    other = [Pass(answers(5, 5), seconds) for seconds in (2.0, 1.0, 2.0)]
    row = summarise(setting, mine, other)
    assert row.ratio_range == (1.0, 4.0)
    assert row.ratio == 1.0
    assert row.seconds == 2.0
    assert row.tokens_per_second == 10.0
    assert row.tokens_per_forward == 5.0


def test_the_fastest_setting_and_the_fastest_ar_system_win() -> None:
    settings = [Setting(system=CONVERTED, dtype=dtype, threads=n) for dtype in ("float32", "bfloat16") for n in (1, 2)]
    trials = [Trial(setting=s, tokens_per_second=rate) for s, rate in zip(settings, (3.0, 4.0, 9.0, 1.0), strict=True)]
    assert best_setting(trials, CONVERTED) == settings[2]
    speeds = {
        (CONVERTED, "float32"): 0.1, (VERIFIED, "float32"): 0.2, (PARENT_ENGINE, "float32"): 2.0,
        (PARENT_TRANSFORMERS, "float32"): 1.0, (CONVERTED_AR, "bfloat16"): 0.5,
    }  # fmt: skip
    passes = {
        Setting(system=name, dtype=dtype, threads=1): [Pass(answers(9), seconds)]
        for (name, dtype), seconds in speeds.items()
    }
    assert fastest_ar(passes) == Setting(system=CONVERTED_AR, dtype="bfloat16", threads=1)
    assert fastest_ar(passes, "float32") == Setting(system=PARENT_TRANSFORMERS, dtype="float32", threads=1)


def test_where_drafts_take_part_every_system_does_at_each_dtype() -> None:
    rates = {("a", "float32", 1): 1.0, ("a", "float32", 2): 2.0, ("a", "bfloat16", 1): 3.0, ("a", "bfloat16", 2): 1.0}
    trials = [
        Trial(setting=Setting(system=name, dtype=dtype, threads=count), tokens_per_second=rate)
        for (_, dtype, count), rate in rates.items()
        for name in (VERIFIED, PARENT_ENGINE)
    ]
    found = measured_settings(trials, [VERIFIED, PARENT_ENGINE], ["float32", "bfloat16"])
    assert [(each.system, each.dtype, each.threads) for each in found] == [
        (VERIFIED, "float32", 2), (PARENT_ENGINE, "float32", 2), (VERIFIED, "bfloat16", 1),
        (PARENT_ENGINE, "bfloat16", 1),
    ]  # fmt: skip
    assert [each.dtype for each in measured_settings(trials, [PARENT_ENGINE], ["float32", "bfloat16"])] == ["bfloat16"]


def test_drafts_are_held_against_the_weights_own_text_at_the_same_dtype() -> None:
    counts = DraftCounts(cycles=2, tokens=6, verified_at=(2, 2, 2), accepted_at=(2, 1, 0))

    def ran(system: str, dtype: str, tokens: tuple[int, ...], seconds: float) -> tuple[Setting, list[Pass]]:
        own = Answer(tokens, 5, 0, 4, 0, drafts=counts if system == VERIFIED else None)
        same = Answer((7,), 1, 0, 1, 0, drafts=DraftCounts() if system == VERIFIED else None)
        return Setting(system=system, dtype=dtype, threads=1), [Pass((own, same), seconds)]

    passes = dict(
        [
            ran(VERIFIED, "float32", (1, 2), 1.0),
            ran(CONVERTED_AR, "float32", (1, 2), 2.0),
            ran(PARENT_ENGINE, "float32", (3, 4), 3.0),
            ran(VERIFIED, "bfloat16", (1, 2), 1.0),
            ran(PARENT_ENGINE, "bfloat16", (1, 3), 0.5),
        ]
    )
    baseline = fastest_ar(passes)
    rows = [row_of(setting, passes, baseline) for setting in passes]
    assert [row.equal for row in rows] == [1.0, None, None, 0.5, None]
    assert [row.ratio for row in rows] == [0.5, 0.25, pytest.approx(1 / 6), 0.5, 1.0]
    assert [row.same_dtype_ratio for row in rows] == [2.0, 1.0, pytest.approx(2 / 3), 0.5, 1.0]
    assert rows[0].drafts == counts
    assert rows[1].drafts is None
    assert drafts_of([Answer((), 1, 0, 1, 0, drafts=DraftCounts())]) is None


def test_a_drafter_stands_beside_its_parent_and_writes_its_text(drafted: DecodeBench) -> None:
    rows = {(row.setting.system, row.setting.dtype): row for row in drafted.rows}
    systems = (CONVERTED, VERIFIED, CONVERTED_AR, PARENT_ENGINE, PARENT_TRANSFORMERS)
    assert list(rows) == [(system, dtype) for dtype in ("float32", "bfloat16") for system in systems]
    row = rows[VERIFIED, "float32"]
    assert row.equal == 1.0
    assert row.drafts is not None
    assert row.drafts.verified_at[0] > 0
    assert 0.0 < row.drafts.tokens_per_cycle <= row.tokens / row.drafts.cycles
    assert rows[drafted.baseline, drafted.baseline_dtype].ratio == 1.0
    for dtype in ("float32", "bfloat16"):
        ratios = [rows[system, dtype].same_dtype_ratio or 0.0 for system in systems[2:]]
        assert 1.0 in ratios, "one of them is the fastest, by its own ratio"
    assert drafted.same_ar_answers == 2


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()
    with kept_threads():
        torch.set_num_threads(before + 1)
    assert torch.get_num_threads() == before
    assert default_threads()[0] == 1
