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
    fastest_ar,
    kept_threads,
    summarise,
)
from difflm.bench.systems import CONVERTED, PARENT_ENGINE, PARENT_TRANSFORMERS, SYSTEMS, Answer
from difflm.checkpoints.convert import convert
from difflm.checkpoints.loading import load_model
from difflm.decode.engine import generate
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
    passes = {
        CONVERTED: [Pass(answers(9), 0.1)],
        PARENT_ENGINE: [Pass(answers(9), 2.0)],
        PARENT_TRANSFORMERS: [Pass(answers(9), 1.0)],
    }
    assert fastest_ar(passes) == PARENT_TRANSFORMERS


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()
    with kept_threads():
        torch.set_num_threads(before + 1)
    assert torch.get_num_threads() == before
    assert default_threads()[0] == 1
