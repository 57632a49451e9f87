"""The grid, resumption point by point, the files, and the Pareto set."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

import difflm
from difflm.decode.events import Forwards
from difflm.decode.request import SamplingParams
from difflm.errors import RequestError
from difflm.evaluation import sweep as sweeping
from difflm.evaluation.measuring import Measured, Setting
from difflm.evaluation.sweep import POINTS, Plan, Point, fingerprint, grid, pareto, rows_of, setting_of, sweep
from difflm.evaluation.tasks import LocalFile
from tests.checkpoints.adapters import adapted
from tests.drafters import drafters, sure_drafters
from tests.evaluation.models import workshop

__all__ = ["drafters", "sure_drafters", "workshop"]


class Lines:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []
        self.items = 0
        self.lines: list[str] = []

    def begin(self, label: str, items: int) -> None:
        self.told.append((label, items))

    def item(self) -> None:
        self.items += 1

    def end(self, line: str) -> None:
        self.lines.append(line)


def plan_of(workshop: Path) -> Plan:
    return Plan(
        task=LocalFile(workshop / "items.jsonl"),
        items=4,
        seed=0,
        params=SamplingParams(max_new_tokens=5),
        place={"device": "cpu"},
    )


def test_the_grid_is_a_cross_or_what_is_asked_for() -> None:
    assert [(each.threshold, each.block_size) for each in grid()] == [
        (0.85, 32),
        (0.9, 32),
        (0.95, 32),
        (0.95, 16),
        (0.95, 64),
    ]
    asked = grid(["native", "sglang"], [0.5, 1.0], [4, 8])
    assert [(each.policy, each.threshold, each.block_size) for each in asked] == [
        (name, threshold, size) for name in ("native", "sglang") for size in (4, 8) for threshold in (0.5, 1.0)
    ]
    assert [each.label for each in grid(block_sizes=[8])] == ["native:block_length=8,threshold=0.95"]
    assert [each.label for each in grid(thresholds=[0.5])] == ["native:block_length=32,threshold=0.5"]


def test_what_a_policy_sets_itself_is_not_swept() -> None:
    (own,) = grid(["hf21:threshold=0.7,editing_threshold=0.5,block_length=8"])
    assert (own.threshold, own.block_size) == (0.7, 8)
    fixed = grid(["native:fixed=4"], block_sizes=[4, 8])
    assert [(each.threshold, each.block_size) for each in fixed] == [(None, 4), (None, 8)]
    assert setting_of("sglang", 0.5, 4).settings == (("block_size", 4), ("threshold", 0.5))
    with pytest.raises(RequestError, match="hf21: it has no setting 'treshold'"):
        grid(["hf21:treshold=1"])


def test_finished_points_are_taken_and_others_measured(workshop: Path, tmp_path: Path) -> None:
    loaded, parent = difflm.load_model(workshop / "model"), difflm.load_model(workshop / "parent")
    settings, plan = grid(thresholds=[0.001, 1.0], block_sizes=[4]), plan_of(workshop)
    first, second, third = Lines(), Lines(), Lines()
    half = sweep(loaded, settings[:1], plan, tmp_path, watcher=first)
    assert (first.told, first.items) == ([(settings[0].label, 4)], 4)
    with (tmp_path / POINTS).open("a") as file:
        file.write('{"key": {"mod')  # what a killed sweep leaves
    points = sweep(loaded, settings, plan, tmp_path, parent=parent, watcher=second)
    assert second.told == [(settings[0].label, 0), (settings[1].label, 4), ("next_token", 4)]
    assert points[0] == half[0]
    assert sweep(loaded, settings, plan, tmp_path, parent=parent, watcher=third) == points
    assert third.items == 0
    assert len((tmp_path / POINTS).read_text().splitlines()) == 3
    assert third.lines == second.lines
    assert second.lines[0].startswith(f"{settings[0].label}: score ")
    assert points[0].measured.tokens_per_forward > points[1].measured.tokens_per_forward == pytest.approx(1, abs=0.3)
    assert points[2].measured.forwards == Forwards(denoise=points[2].measured.num_tokens)
    # Another plan shares nothing with them.
    other = Lines()
    sweep(loaded, settings[:1], replace(plan, seed=1), tmp_path, watcher=other)
    assert other.items == 4


def test_the_files_hold_every_figure(workshop: Path, tmp_path: Path) -> None:
    loaded = difflm.load_model(workshop / "model")
    points = sweep(loaded, grid(thresholds=[0.001, 1.0], block_sizes=[4]), plan_of(workshop), tmp_path)
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [row["policy"] for row in rows] == [point.setting.label for point in points]
    assert [float(row["score"]) for row in rows] == [point.measured.score for point in points]
    whole = json.loads((tmp_path / "sweep.json").read_text())
    assert whole["points"] == rows_of(points)
    assert whole["pareto"] == [point.setting.label for point in pareto(points)]
    assert (whole["task"], whole["seed"], whole["device"], whole["parent"]) == (
        str(workshop / "items.jsonl"), 0, "cpu", None,
    )  # fmt: skip
    assert {"torch", "commit", "processor"} <= whole["environment"].keys()


def test_a_model_whose_weights_changed_is_another_one(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"a")
    before = fingerprint(tmp_path)
    (tmp_path / "generation_config.json").write_text("{}")
    assert fingerprint(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"ab")
    assert fingerprint(tmp_path) != before
    assert fingerprint(tmp_path / "model.safetensors") != before


def made(score: float, tpf: float) -> Point:
    measured = Measured(scores=[score], answers=[""], num_tokens=round(tpf * 100), forwards=Forwards(denoise=100))
    return Point(setting=Setting(policy=f"{score} {tpf}"), measured=measured)


def test_the_pareto_set_is_what_no_point_beats() -> None:
    points = [
        made(score, tpf) for score, tpf in [(0.5, 2), (0.6, 2), (0.9, 1), (0.6, 1.5), (0.2, 3), (0.9, 1), (0.2, 1)]
    ]

    def beaten(one: Point) -> bool:
        mine = one.measured
        return any(
            (other.measured.score, other.measured.tokens_per_forward) != (mine.score, mine.tokens_per_forward)
            and other.measured.score >= mine.score
            and other.measured.tokens_per_forward >= mine.tokens_per_forward
            for other in points
        )

    expected = {point.setting.label for point in points if not beaten(point)}
    for turn in range(len(points)):
        found = [point.setting.label for point in pareto([*points[turn:], *points[:turn]])]
        assert sorted(found) == sorted(expected)
    assert [point.setting.label for point in pareto(points)] == ["0.2 3", "0.6 2", "0.9 1"]


def test_the_schema_s_columns_are_the_rows(workshop: Path) -> None:
    assert set(rows_of([made(0.5, 2)])[0]) == set(sweeping.COLUMNS)


def test_left_to_right_there_is_nothing_to_sweep() -> None:
    assert setting_of("verified:window=4", 0.5, 8) == Setting(policy="verified", settings=(("window", 4),))
    assert setting_of("next_token", 0.5, 8) == Setting(policy="next_token")
    assert [each.label for each in grid(["next_token", "verified"])] == ["next_token", "verified"]
    with pytest.raises(RequestError, match="policy next_token: it has no setting 'window'; leave it out"):
        setting_of("next_token:window=4")
    with pytest.raises(RequestError, match="it has no setting 'threshold'"):
        setting_of("verified:threshold=4")


def test_drafts_are_counted_and_kept(sure_drafters: Path, tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text(
        '{"prompt": "ab", "answer": "aaaaaaaaaaaaaaaa"}\n{"prompt": "c", "answer": ""}\n'
    )
    plan = Plan(task=LocalFile(tmp_path / "items.jsonl"), items=None, seed=0, params=SamplingParams(max_new_tokens=16))
    loaded = difflm.load_model(sure_drafters / "drafter")
    settings = grid(["next_token", "verified:window=4,fused=false"])
    plain, drafted = sweep(loaded, settings, plan, tmp_path / "out")
    assert plain.measured.answers == drafted.measured.answers
    assert plain.measured.scores == drafted.measured.scores == [1.0, 0.0]
    assert (plain.row()["tokens_per_cycle"], plain.row()["acceptance"]) == (None, None)
    # Two forwards write 5 tokens, three times; the last token has a forward of its own.
    assert (drafted.row()["tokens_per_cycle"], drafted.row()["acceptance"]) == (5.0, 1.0)
    assert drafted.measured.drafts.accepted_at == (6, 6, 6)
    assert sweep(loaded, settings, plan, tmp_path / "out") == [plain, drafted]
    rows = list(csv.DictReader((tmp_path / "out" / "sweep.csv").open()))
    assert [row["acceptance"] for row in rows] == ["", "1.0"]
    # A line from before drafts were counted.
    line = json.loads((tmp_path / "out" / POINTS).read_text().splitlines()[0])
    del line["measured"]["drafts"]
    (tmp_path / "out" / POINTS).write_text(json.dumps(line) + "\n")
    assert sweep(loaded, settings[:1], plan, tmp_path / "out") == [plain]


def test_adapters_of_one_base_are_told_apart(drafters: Path, tmp_path: Path) -> None:
    plan = Plan(task=LocalFile(tmp_path / "items.jsonl"), items=None, seed=0, params=SamplingParams())
    setting = Setting(policy="next_token")
    base, drafter = difflm.load_model(drafters / "base"), difflm.load_model(drafters / "drafter")
    other = adapted(drafters / "base", gate="noisy", seed=1)
    keys = [plan.key(each, setting) for each in (base, drafter, difflm.load_model(drafters / "drafter"), other)]
    assert keys[1] == keys[2]
    assert "adapter" not in keys[0]
    assert keys[1]["adapter"] != keys[3]["adapter"]
    assert {key["model"] for key in keys} == {str(drafters / "base")}
