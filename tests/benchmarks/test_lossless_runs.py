"""The commands of `benchmarks.lossless` on tiny models: they run, go on where they stopped, and end in a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lossless import ablation, equality
from benchmarks.lossless.__main__ import main
from benchmarks.lossless.adapters import drafting_base, random_drafter
from difflm import load_model
from difflm.data.documents import Document
from difflm.data.tokens import tokenise
from difflm.plots import read_rows
from tests.drafters import drafters, sure_drafters

__all__ = ["drafters", "sure_drafters"]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "hello there", "kind": "qa"}, {"prompt": "some code", "kind": "code"}, {"prompt": "a b"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def of_kind(path: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(path) if row["kind"] == kind]


def test_narrow_measures_what_is_missing_and_scores_it(
    drafters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "narrow.jsonl"
    said = ["narrow", "--adapter", str(drafters / "drafter"), "--results", str(results), "--threads", "1"]
    said += ["--windows", "4", "--dtypes", "float32"]
    assert main([*said, "--items", "1"]) == 0
    before = of_kind(results, "item")
    assert main([*said, "--items", "2", "--fused", "auto", "never"]) == 0
    rows = of_kind(results, "item")
    assert rows[:3] == before
    assert {(row["name"], row["item"]) for row in rows} == {
        (name, number)
        for name in ("next token", "transformers", "verified, window 4, fused auto", "verified, window 4, fused never")
        for number in (0, 1)
    }
    assert len({tuple(row["tokens"]) for row in rows if row["item"] == 1}) == 1
    assert not any(row["correct"] for row in rows)
    table = capsys.readouterr().out
    assert "| exact match |" in table
    assert "| verified, window 4, fused never | float32 | 2 |" in table


def test_general_measure_has_a_line_per_kind(
    sure_drafters: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "general.jsonl"
    said = ["general-measure", "--adapter", str(sure_drafters / "drafter"), "--prompts", str(questions)]
    said += ["--results", str(results), "--dtypes", "float32", "--windows", "8", "--max-new-tokens", "40"]
    assert main([*said, "--no-transformers", "--threads", "1"]) == 0
    [verified, *_] = [row for row in of_kind(results, "item") if row["way"] == "verified"]
    assert verified["num_tokens"] == 40
    assert verified["drafts"]["accepted_at"] == verified["drafts"]["verified_at"]
    out = capsys.readouterr().out
    assert all(f"| {kind} | verified, window 8, fused auto (float32) | 1 |" in out for kind in ("qa", "code", "prompt"))
    assert main(["general-measure", "--table", "--results", str(results)]) == 0
    assert capsys.readouterr().out.strip() == out[out.index("| system") :].strip()


def test_equality_holds_with_a_random_adapter(
    drafters: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ["equality", "--model", str(drafters / "parent"), "--work", str(tmp_path / "work"), "--threads", "1"]
    said += ["--prompts", str(questions), "--results", str(tmp_path / "eq.jsonl"), "--max-new-tokens", "24"]
    assert main(said) == 0
    rows = of_kind(tmp_path / "eq.jsonl", "answer")
    assert [row["mode"] for row in rows] == ["greedy"] * 3 + ["sampled"] * 3 + ["transformers"] * 3
    assert all(row["same"] and row["tokens"] == 24 for row in rows)
    assert all(row["drafted"] for row in rows[:6])
    assert main(said) == 0
    assert of_kind(tmp_path / "eq.jsonl", "answer") == rows
    assert "| sampled | 3 | 72 | 3/3 | 0 |" in capsys.readouterr().out


def test_a_difference_is_told_with_its_place_and_margin(drafters: Path, tmp_path: Path) -> None:
    loaded = random_drafter(drafting_base(drafters / "base", tmp_path))
    row = equality.compared(loaded, [1, 2, 3], [4, 5, 6], [4, 9, 6])
    assert (row["same"], row["first"]) == (False, 1)
    assert row["margin"] > 0


def test_general_data_writes_the_ids_of_decoding(drafters: Path, tmp_path: Path) -> None:
    said = ["general-data", "--model", str(drafters / "base"), "--output", str(tmp_path), "--no-packages"]
    said += ["--items", "30", "--max-new-tokens", "24", "--row-length", "224", "--dtype", "float32", "--threads", "1"]
    assert main(said) == 0
    rows = of_kind(tmp_path / "completions.jsonl", "completion")
    assert {row["side"] for row in rows} == {"train", "validation"}
    assert {row["mode"] for row in rows} == {"greedy", "sampled"}
    loaded = load_model(drafters / "base")
    trained = read_rows(tmp_path / "train.jsonl")
    assert len(trained) == sum(row["side"] == "train" for row in rows)
    for row, line in zip([row for row in rows if row["side"] == "train"], trained, strict=True):
        assert line["input_ids"] == row["prompt_ids"] + row["answer_ids"]
        assert line["labels"] == [-100] * len(row["prompt_ids"]) + row["answer_ids"]
        assert loaded.encode(row["prompt"]) == row["prompt_ids"]
    assert all(set(line) == {"prompt", "kind"} for line in read_rows(tmp_path / "test.jsonl"))
    before = (tmp_path / "train.jsonl").read_text()
    assert main(said) == 0
    assert (tmp_path / "train.jsonl").read_text() == before


def test_text_is_written_only_where_training_would_see_the_same_ids(drafters: Path) -> None:
    from benchmarks.lossless.completions import as_text

    loaded = load_model(drafters / "base")
    [end] = loaded.config.eos_token_ids
    prompt, answer = loaded.encode("Who?"), loaded.encode("Me.")
    row = {"prompt": "Who?", "completion": "Me.", "prompt_ids": prompt, "answer_ids": [*answer, end]}
    assert as_text(loaded, row) == {"prompt": "Who?", "completion": "Me."}
    [document] = tokenise([Document(prompt="Who?", completion="Me.")], loaded.encode, eos_id=end)
    assert list(document.token) == [*prompt, *answer, end]
    assert as_text(loaded, {**row, "answer_ids": answer}) is None  # cut at the limit: the parent wrote no EOS
    assert as_text(loaded, {**row, "prompt_ids": prompt[1:]}) is None


def test_general_train_does_each_setting_once_within_its_budget(
    drafters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for side, count in (("train", 30), ("validation", 4)):
        lines = [{"prompt": f"{side} {number}: ", "completion": "abcdefgh" * 4} for number in range(count)]
        (data / f"{side}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = tmp_path / "ablation.jsonl"
    said = ["general-train", "--model", str(drafters / "base"), "--data", str(data), "--results", str(results)]
    said += ["--work", str(tmp_path / "work"), "--cpu-seconds", "0.5", "--settings", "recipe", "rank 16", "--rows", "4"]
    said += ["--dtype", "float32", "--set", "data.row_length=64", "objective.noisy_rows=32", "rows_per_batch=1"]
    assert main(said) == 0
    curves = ablation.curves(read_rows(results))
    assert list(curves) == ["recipe", "rank 16"]
    for row in of_kind(results, "plan"):
        assert row["num_tokens"] == round(0.5 / row["cost"])
        assert curves[row["setting"]][-1]["num_tokens"] >= row["num_tokens"]
    assert not list((tmp_path / "work").iterdir())
    before = results.read_text()
    assert main(said) == 0
    assert [row["kind"] for row in read_rows(results)][-1] == "environment"
    assert results.read_text().startswith(before)
    assert "tokens trained: tokens per cycle" in capsys.readouterr().out


def test_every_setting_of_the_grid_is_a_configuration(drafters: Path, tmp_path: Path) -> None:
    plan = ablation.Plan(base=drafters / "base", data=tmp_path, work=tmp_path, cpu_seconds=1.0)
    trees = [
        ablation.config_of(plan, overrides, output=tmp_path / "run", tokens=1000, trial=False)
        for overrides in ablation.grid(30).values()
    ]
    assert len({repr(tree) for tree in trees}) == len(trees)
    assert all(tree.total_tokens == 1000 for tree in trees)


def test_a_random_adapter_needs_a_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["narrow", "--results", str(tmp_path / "x.jsonl")]) == 2
    assert "--adapter random needs --model" in capsys.readouterr().err
