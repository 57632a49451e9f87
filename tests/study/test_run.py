"""The whole study on a tiny model and a made-up task: every stage runs, and a second run does nothing twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from difflm.errors import DifflmError
from study import run as running
from study.lanes import Lanes
from study.plan import FULL, QUICK, VARIANTS, Plan, cap_run, fast_dtype, plan_facts, sft_run, variant_run
from study.report import write_page
from study.run import Study, check_plan, with_dtype
from study.tasks import StudyTask
from tests.study.test_tasks import Numbers

STAGES = ("parent", "wsd", "sft", "cap", "dpo", "lossless")
PLAN = Plan(
    layers=1,
    hidden=64,
    vocabulary=280,
    row_length=32,
    rows_per_batch=8,
    block_size=4,
    window=4,
    log_every=1,
    parent_tokens=10_000,
    ladder=((1, 300), ("row", 300), (4, 1000)),
    sft_tokens=2000,
    cap_tokens=500,
    dpo_tokens=300,
    draft_tokens=500,
    parent_items=200,
    continued_items=40,
    tuned_items=40,
    own_items=12,
    preferred_items=16,
    samples=6,
    validation_items=4,
    items=10,
    curve_items=5,
    thresholds=(0.5, 0.9),
    speed_items=1,
    repeats=1,
    compiled=False,
    least_records=1,
    learning_rates=tuple((stage, 3e-3) for stage in STAGES),
)


VARIED = [each for each in VARIANTS if each.name in ("sft-8", "cap-zero", "sft-all", "sft-left")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished study."""
    folder = tmp_path_factory.mktemp("study") / "study"
    study(folder).run()
    return folder


def study(folder: Path, lines: list[str] | None = None) -> Study:
    said = [] if lines is None else lines
    return Study(PLAN, [StudyTask("numbers", Numbers(), 8)], folder, said.append, VARIED)


@pytest.mark.slow
def test_every_stage_is_trained_scored_and_timed(folder: Path) -> None:
    results = study(folder).results
    assert results.of("skipped") == []
    blocks = {"wsd", "sft", "sft-8", "cap", "cap-zero", "dpo"}
    controls = {"ar-wsd", "ar-sft", "ar-cap", "ar-dpo"}
    assert {row["stage"] for row in results.of("training")} == blocks | controls | {"parent", "lossless"}
    assert {row["stage"] for row in results.of("score")} == blocks | controls | {"lossless", "sft-all", "sft-left"}
    for stage in ("wsd", "sft", "cap", "dpo"):
        own, beside = (results.of("training", stage=name)[0]["tokens"] for name in (stage, f"ar-{stage}"))
        assert own == beside, "the control has as many tokens"
        assert {row["threshold"]: row["items"] for row in results.of("score", stage=stage)} == {0.5: 5, 0.9: 10}
    assert {row["block_size"] for row in results.of("score", stage="sft-8")} == {8}
    assert [row["threshold"] for row in results.of("score", stage="sft-all")] == [0.0]
    assert [row["tpf"] for row in results.of("score", stage="sft-left")] == [1.0]
    assert {row["stage"] for row in results.of("speed")} == {"ar-sft", "sft", "cap", "dpo", "lossless"}
    assert results.of("equal")[0]["same"] == results.of("equal")[0]["items"]
    assert results.of("training", stage="dpo")[0]["rewards"]
    text = write_page(folder, folder / "page.md").read_text()
    assert "| dpo | preferences (Eqs. 7-8) | 10 |" in text


@pytest.mark.slow
def test_the_parts_of_the_data_share_no_prompt(folder: Path) -> None:
    names = ("validation", "parent", "continued", "tuned", "questions-own", "questions-preferred")
    found = [json.loads(line)["prompt"] for name in names for line in (folder / "data" / f"{name}.jsonl").open()]
    scored = [item.prompt for item in StudyTask("numbers", Numbers(), 8).items(PLAN.items, 1)]
    assert len(set(found + scored)) == len(found) + len(scored)
    for name, of in (("own", "questions-own"), ("preferred", "questions-preferred")):
        asked = {json.loads(line)["prompt"] for line in (folder / "data" / f"{of}.jsonl").open()}
        lines = [json.loads(line) for line in (folder / "data" / f"{name}.jsonl").open()]
        assert lines
        assert {line["prompt"] for line in lines} <= asked


@pytest.mark.slow
def test_a_second_run_does_nothing_twice(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in (".safetensors", ".csv")}
    weights = {path for path in before if path.suffix == ".safetensors"}
    figures = study(folder).results.of("score")
    lines: list[str] = []
    study(folder, lines).run()
    assert {path: path.stat().st_mtime_ns for path in weights} == {path: before[path] for path in weights}
    assert study(folder).results.of("score") == figures, "points are taken, not measured again"
    assert lines


@pytest.mark.slow
def test_a_training_in_a_process_of_its_own_is_the_same_run(folder: Path, tmp_path: Path) -> None:
    config = sft_run(PLAN, folder, model=folder / "merged")
    lanes, elsewhere = Lanes(2), replace(config, output=tmp_path / "sft")
    found = lanes.together([lambda: lanes.train("again", elsewhere), lambda: lanes.train("done", config)])
    assert [path.parent.parent for path in found] == [tmp_path / "sft", config.output]
    again, before = (load_file(path / "model.safetensors") for path in found)
    for name, value in before.items():
        assert torch.allclose(again[name], value, atol=1e-5), name


@pytest.mark.slow
def test_a_stage_without_own_answers_is_left_out_and_named(folder: Path) -> None:
    made = study(folder)
    made.plan = Plan(**{**{name: getattr(PLAN, name) for name in PLAN.__slots__}, "least_records": 10**6})
    assert not made._enough("cap", folder / "data" / "own.jsonl")
    [row] = made.results.of("skipped")
    assert row["stage"] == "cap"
    assert "fewer than 1000000" in row["reason"]


def test_each_variant_is_a_run_of_its_own(tmp_path: Path) -> None:
    trained = [each for each in VARIANTS if each.trained]
    runs = {each.name: variant_run(QUICK, tmp_path, each, model=tmp_path) for each in trained}
    plain = {"sft": sft_run(QUICK, tmp_path, model=tmp_path), "cap": cap_run(QUICK, tmp_path, model=tmp_path)}
    assert len({config.output for config in (*runs.values(), *plain.values())}) == len(trained) + 2
    for variant in trained:
        found, stage = runs[variant.name], plain[variant.of]
        assert found.data == stage.data
        changed = (found.objective, found.curriculum, found.optimizer.learning_rate)
        assert changed != (stage.objective, stage.curriculum, stage.optimizer.learning_rate)
    decoded = {(each.decoding, each.threshold) for each in VARIANTS if not each.trained}
    blocks = {("block", threshold) for threshold in (0.0, 0.99, 1.0)}
    assert decoded == blocks | {("next_token", None), ("verified", None)}
    assert runs["cap-long"].total_tokens == 3 * QUICK.cap_tokens
    assert runs["sft-fast"].optimizer.learning_rate == 2 * QUICK.rate("sft")


def test_a_folder_of_another_plan_is_refused(tmp_path: Path) -> None:
    check_plan(QUICK, tmp_path)
    check_plan(QUICK, tmp_path)
    with pytest.raises(DifflmError, match="holds a study of other sizes"):
        check_plan(FULL, tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text())["items"] == plan_facts(QUICK)["items"]


def test_a_study_keeps_the_dtype_that_it_began_with(tmp_path: Path) -> None:
    assert with_dtype(QUICK, tmp_path, None).dtype == fast_dtype()
    for dtype in ("float32", "bfloat16"):
        folder = tmp_path / dtype
        assert with_dtype(QUICK, folder, dtype).dtype == dtype
        check_plan(with_dtype(QUICK, folder, dtype), folder)
        assert with_dtype(QUICK, folder, None).dtype == dtype


def test_the_command_names_its_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running, "TASKS", ())
    check_plan(FULL, tmp_path)
    assert running.main(["--quick", "--output", str(tmp_path)]) == 2
    assert "holds a study of other sizes" in capsys.readouterr().err
