"""The fastest setting within the loss, and where it is written."""

from __future__ import annotations

import functools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import difflm
from difflm.checkpoints.manifest import seal_folder
from difflm.cli.main import run
from difflm.decode.events import Forwards
from difflm.decode.request import SamplingParams
from difflm.errors import CheckpointError, ConfigError, DataError
from difflm.evaluation import tune as tuning
from difflm.evaluation.drafting import Costs, costs_of_windows
from difflm.evaluation.measuring import Measured, Setting
from difflm.evaluation.sweep import Plan, Point
from difflm.evaluation.tasks import LocalFile
from difflm.evaluation.tune import Prompts, check_writable, describe, likeness, tune, write_defaults
from tests.drafters import drafters, sure_drafters
from tests.evaluation.models import workshop

__all__ = ["drafters", "sure_drafters", "workshop"]


def plan_of(task: LocalFile | Prompts) -> Plan:
    return Plan(task=task, items=6, seed=0, params=SamplingParams(max_new_tokens=6))


def measured(scores: list[float], tps: float) -> Measured:
    return Measured(
        scores=scores,
        answers=["a b"] * len(scores),
        forwards=Forwards(denoise=10),
        num_tokens=int(100 * tps),
        seconds=100.0,
    )


def test_the_fastest_setting_within_the_loss_is_chosen(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = {
        "native:block_length=4,threshold=1.0": measured([1, 1, 1, 0], 10),
        "native:block_length=4,threshold=0.9": measured([1, 1, 1, 0], 20),
        "native:block_length=4,threshold=0.5": measured([1, 1, 0, 0], 40),
        "native:block_length=8,threshold=0.9": measured([0, 1, 1, 1], 30),
        "native:block_length=8,threshold=0.5": measured([1, 0, 0, 0], 90),
    }

    def swept(loaded: Any, settings: list[Setting], *_: Any, **__: Any) -> list[Point]:
        return [Point(setting=each, measured=results[each.label]) for each in settings]

    monkeypatch.setattr(tuning, "sweep", swept)
    loaded = difflm.load_model(workshop / "model")

    def chosen(max_loss: float) -> tuple[int | None, float | None]:
        plan = plan_of(LocalFile(workshop / "items.jsonl"))
        found = tune(loaded, plan, max_loss=max_loss, thresholds=[0.9, 0.5], block_sizes=[4, 8])
        return found.chosen.setting.block_size, found.chosen.setting.threshold

    assert chosen(0.0) == (8, 0.9)  # as good on the whole, by other items
    assert chosen(0.24) == (8, 0.9)
    assert chosen(0.25) == (4, 0.5)
    assert chosen(0.5) == (8, 0.5)
    # Within 5 % of the fastest the score decides, and of equal ones the first.
    results["native:block_length=8,threshold=0.9"] = measured([1, 1, 1, 0], 38.2)
    assert chosen(0.25) == (8, 0.9)
    results["native:block_length=8,threshold=0.9"] = measured([1, 1, 1, 0], 38.0)
    assert chosen(0.25) == (4, 0.5)
    results["native:block_length=4,threshold=0.9"] = measured([1, 1, 1, 0], 39.0)
    results["native:block_length=8,threshold=0.9"] = measured([1, 1, 1, 0], 40.0)
    assert chosen(0.25) == (4, 0.9)
    results["native:block_length=4,threshold=1.0"] = measured([1, 1, 1, 1], 10)
    assert chosen(0.0) == (4, 1.0)
    with pytest.raises(ConfigError, match=r"--max-loss: -0\.1 is below 0"):
        chosen(-0.1)


def test_a_real_grid_is_around_the_model_s_block_size_and_told(workshop: Path, tmp_path: Path) -> None:
    loaded = difflm.load_model(workshop / "model")
    found = tune(loaded, plan_of(LocalFile(workshop / "items.jsonl")), max_loss=1.0, folder=tmp_path)
    assert (found.careful.setting.block_size, found.careful.setting.threshold) == (4, 1.0)
    assert {each.setting.block_size for each in found.points} == {2, 4, 8}
    assert [each.setting.threshold for each in found.points[:5]] == list(tuning.THRESHOLDS)
    speeds = [each.measured.tokens_per_second for each in (found.careful, *found.points)]
    assert found.chosen.measured.tokens_per_second >= max(speeds) / 1.05
    assert describe(found).startswith(f"block_size {found.chosen.setting.block_size}, threshold ")
    assert len((tmp_path / "points.jsonl").read_text().splitlines()) == 16


def test_without_answers_the_careful_ones_are_right(workshop: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "ab"}\n\n{"text": "cd"}\n{"prompt": "ef"}\n')
    loaded = difflm.load_model(workshop / "model")
    plan = replace(plan_of(Prompts(path)), items=2)
    found = tune(loaded, plan, max_loss=0.0, thresholds=[1.0, 0.001], block_sizes=[4])
    same, hasty = found.points
    assert same.measured.scores == [1.0, 1.0]
    assert found.careful.measured.score == 1.0
    pairs = zip(hasty.measured.answers, found.careful.measured.answers, strict=True)
    assert hasty.measured.scores == [likeness(*pair) for pair in pairs]
    assert hasty.measured.score < 1.0
    assert found.chosen.setting.threshold == 1.0


def test_likeness_counts_words_in_order() -> None:
    assert likeness("a b  c\n", "a b c") == 1.0
    assert likeness("a b c d", "a x c") == pytest.approx(2 * 2 / 7)
    assert likeness("", "") == 1.0
    assert likeness("a", "") == 0.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it has no prompts"),
        ("{", "line 1: no JSON"),
        ('{"prompt": ""}', 'line 1: it needs a text "prompt"'),
        ("[1]", 'line 1: it needs a text "prompt"'),
    ],
)
def test_a_bad_file_of_prompts_is_said(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        Prompts(tmp_path / "prompts.jsonl").items(None, 0)


def test_what_is_written_is_what_decoding_takes(workshop: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(workshop / "model", tmp_path / "model"))
    (folder / "generation_config.json").write_text('{"temperature": 0.7, "threshold": 0.3}')
    setting = Setting(policy="native", block_size=2, threshold=0.001)
    write_defaults(folder, Point(setting=setting, measured=measured([1], 1)))
    assert json.loads((folder / "generation_config.json").read_text()) == {
        "temperature": 0.7, "threshold": 0.001, "block_size": 2,
    }  # fmt: skip
    loaded = difflm.load_model(folder)
    found = difflm.generate(loaded, ["a"], difflm.SamplingParams(max_new_tokens=7, ignore_eos=True))[0]
    assert found.forwards.denoise == 4  # blocks of two behind one token: 1 + 2 + 2 + 2, each in one forward
    asked = difflm.SamplingParams(max_new_tokens=7, ignore_eos=True, threshold=1.0, block_size=4)
    assert difflm.generate(loaded, ["a"], asked)[0].forwards.denoise == 7


def drafting_results(monkeypatch: pytest.MonkeyPatch, speeds: dict[str, float]) -> list[str]:
    """Let a sweep find these speeds, 10 tokens/s elsewhere and never a loss; return the labels that it is asked for."""
    asked: list[str] = []

    def swept(loaded: Any, settings: list[Setting], *_: Any, **__: Any) -> list[Point]:
        asked.extend(each.label for each in settings)
        return [Point(setting=each, measured=measured([1.0], speeds.get(each.label, 10))) for each in settings]

    monkeypatch.setattr(tuning, "sweep", swept)
    monkeypatch.setattr(
        tuning, "costs_of_windows", lambda loaded, windows, *_, **__: {each: Costs(each / 100, 0.5) for each in windows}
    )
    return asked


def test_a_drafter_is_tried_left_to_right_alone(
    drafters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, plan = difflm.load_model(drafters / "drafter"), plan_of(LocalFile(tmp_path / "items.jsonl"))
    asked = drafting_results(monkeypatch, {"verified:window=4,row_cost=0.04,draft_cost=0.5": 20})
    found = tune(loaded, plan, max_loss=0.0)
    assert asked == ["next_token", *(f"verified:window={n},row_cost=0.0{n},draft_cost=0.5" for n in (2, 4, 8))]
    assert found.careful.setting == Setting(policy="next_token")
    chosen = "decoding verified, window 4, row_cost 0.04, draft_cost 0.5: 20.0 tokens/s, 2.00 times the most "
    assert describe(found).startswith(chosen)
    asked = drafting_results(monkeypatch, {"verified:window=8,row_cost=0.08,draft_cost=0.5": 10.2})
    found = tune(loaded, plan, max_loss=0.0, windows=[8])
    assert asked == ["next_token", "verified:window=8,row_cost=0.08,draft_cost=0.5"]
    assert found.chosen.setting.policy == "next_token", "drafts that gain less than timings differ by"
    assert describe(found).startswith("decoding next_token: 10.0 tokens/s")
    with pytest.raises(ConfigError, match=r"--threshold: 0\.9 is for blocks, but the adapter on .* only drafts"):
        tune(loaded, plan, max_loss=0.0, thresholds=[0.9])
    with pytest.raises(ConfigError, match=r"--block-size: 4 is for blocks, but the adapter on .* only drafts"):
        tune(loaded, plan, max_loss=0.0, block_sizes=[4])


def test_full_weights_are_tried_in_blocks_and_left_to_right(
    drafters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, plan = difflm.load_model(drafters / "base"), plan_of(LocalFile(tmp_path / "items.jsonl"))
    asked = drafting_results(monkeypatch, {"next_token": 20})
    found = tune(loaded, plan, max_loss=0.0, thresholds=[0.9], block_sizes=[4])
    assert asked == [
        "native:block_length=8,threshold=1.0",
        "native:block_length=4,threshold=0.9",
        "next_token",
        *(f"verified:window={n},row_cost=0.0{n},draft_cost=0.5" for n in (2, 4, 8)),
    ]
    assert found.chosen.setting.policy == "next_token"


def test_windows_are_for_models_that_draft(workshop: Path) -> None:
    loaded = difflm.load_model(workshop / "model")
    with pytest.raises(
        ConfigError, match=r"--window: 4 is for drafts that are verified, and .* clean_attention 'block'"
    ):
        tune(loaded, plan_of(LocalFile(workshop / "items.jsonl")), max_loss=0.0, windows=[4])


def test_a_drafter_really_tuned_loses_nothing(
    sure_drafters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = functools.partial(costs_of_windows, measure=lambda *_: Costs(0.05, 0.5))
    monkeypatch.setattr(tuning, "costs_of_windows", measured)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "ab"}\n{"prompt": "c"}\n')
    loaded, told = difflm.load_model(sure_drafters / "drafter"), list[str]()

    class Told:
        def begin(self, label: str, items: int) -> None:
            del label, items

        def item(self) -> None: ...

        def end(self, line: str) -> None:
            told.append(line)

    plan = replace(plan_of(Prompts(tmp_path / "prompts.jsonl")), params=SamplingParams(max_new_tokens=16))
    found = tune(loaded, plan, max_loss=0.0, folder=tmp_path / "kept", watcher=Told())
    again = tune(loaded, plan, max_loss=0.0, folder=tmp_path / "kept", watcher=Told())
    assert (again.points, told[5:]) == (found.points, told[:5])
    assert told[0].startswith("a row more and drafting cost, in forwards of one row: 0.05 and 0.5 at window 2, ")
    assert [point.measured.score for point in found.points] == [1.0] * 3
    assert all(point.measured.answers == found.careful.measured.answers for point in found.points)
    assert [point.measured.acceptance for point in found.points] == [1.0] * 3
    assert found.points[-1].measured.tokens_per_forward == pytest.approx(16 / 4)


def written(folder: Path, setting: Setting) -> dict[str, Any]:
    write_defaults(folder, Point(setting=setting, measured=measured([1], 1)))
    return json.loads((folder / "generation_config.json").read_text())


def test_a_drafter_decodes_by_what_is_written_beside_its_adapter(sure_drafters: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sure_drafters / "drafter", tmp_path / "drafter"))
    verified = Setting(policy="verified", settings=(("window", 4), ("row_cost", 0.03)))
    assert written(folder, verified) == {"decoding": "verified", "verified": {"window": 4, "row_cost": 0.03}}
    loaded, params = difflm.load_model(folder), difflm.SamplingParams(max_new_tokens=16)
    assert loaded.config.generation["verified"] == {"window": 4, "row_cost": 0.03}
    done = difflm.generate(loaded, ["one"], params)[0]
    assert done.drafts is not None
    assert len(done.drafts.verified_at) == 3, "a window of 4 drafts 3 tokens behind the first"
    assert difflm.load_model(sure_drafters / "base").config.generation == {}
    # Another choice replaces what is chosen, and keeps the rest.
    assert written(folder, Setting(policy="next_token")) == {
        "decoding": "next_token", "verified": {"window": 4, "row_cost": 0.03},
    }  # fmt: skip
    assert difflm.generate(difflm.load_model(folder), ["one"], params)[0].drafts is None
    assert written(folder, Setting(policy="native", block_size=2, threshold=0.5)) == {
        "decoding": "block", "verified": {"window": 4, "row_cost": 0.03}, "block_size": 2, "threshold": 0.5,
    }  # fmt: skip


def test_a_sealed_adapter_says_how_it_is_finished(drafters: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(drafters / "drafter", tmp_path / "step"))
    seal_folder(folder)
    with pytest.raises(CheckpointError, match=re.escape(f"; difflm merge {folder} --output FOLDER first and tune ")):
        check_writable(folder)
    assert run(["merge", str(folder), "--output", str(tmp_path / "finished")]) == 0
    check_writable(tmp_path / "finished")
    assert difflm.load_model(tmp_path / "finished").model.adapter_gate == "noisy"


def test_what_cannot_take_defaults_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no folder, so there is no generation_config\.json to write"):
        check_writable(tmp_path / "model.gguf")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"manifest\.json seals this checkpoint of a run"):
        check_writable(tmp_path)
