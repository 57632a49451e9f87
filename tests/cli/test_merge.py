"""`difflm merge`: named checkpoints are averaged, a run's are chosen by a method and compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from difflm.checkpoints.adapter_saving import save_adapter
from difflm.checkpoints.fields import write_json
from difflm.cli.main import run
from difflm.training.trainer import Trainer
from tests.checkpoints.adapters import adapted
from tests.cli.test_train import SHORT
from tests.standins import write_parent, write_texts
from tests.training.test_drafts import drafting_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merge")
    write_parent(folder / "parent")
    assert run(["convert", str(folder / "parent"), str(folder / "converted"), "--block-size", "8"]) == 0
    words = ["--model", str(folder / "converted"), "--output", str(folder / "run")]
    words += ["--data", str(write_texts(folder / "text.jsonl"))]
    assert run(["train", "laptop-wsd", *SHORT, *words]) == 0
    return folder / "run"


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_named_checkpoints_are_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = write_parent(tmp_path / "one", seed=1), write_parent(tmp_path / "two", seed=2)
    assert run(["merge", str(one), str(two), "--output", str(tmp_path / "mean")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'mean'}: mean of 2 checkpoints\n"
    assert run(["merge", str(one), str(two), "--weights", "1,3", "--output", str(tmp_path / "heavy")]) == 0
    name = "model.layers.0.mlp.up_proj.weight"
    left, right, mean, heavy = (
        load_file(folder / "model.safetensors")[name] for folder in (one, two, tmp_path / "mean", tmp_path / "heavy")
    )
    torch.testing.assert_close(mean, (left + right) / 2)
    torch.testing.assert_close(heavy, 0.25 * left + 0.75 * right)


def test_the_best_of_a_run_are_chosen_and_the_mean_is_validated(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(["merge", str(trained), "--output", str(tmp_path / "mean"), "--best", "2"]) == 0
    printed = capsys.readouterr()
    head, first, second, last = [line.split() for line in printed.out.splitlines()]
    assert head == ["checkpoint", "weight", "perplexity", "at", "block", "8"]
    assert [row[1] for row in (first, second)] == ["0.5000", "0.5000"]
    assert last[0] == str(tmp_path / "mean")
    assert last[1:4] == ["(best", "of", "2)"]
    best, mean = float(first[-1]), float(last[-1])
    assert best <= float(second[-1])
    assert ("worse than its best member" in printed.err) == (mean > best)


@pytest.mark.parametrize(
    ("words", "weights"),
    [
        (["--method", "window", "--window", "2"], ["0.5000", "0.5000"]),
        (["--method", "window", "--window", "2", "--shape", "sqrt"], ["0.7071", "0.2929"]),
        (["--method", "ema", "--decay", "0.5"], None),
    ],
)
def test_other_methods_weigh_the_checkpoints_in_order(
    words: list[str], weights: list[str] | None, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["merge", str(trained), "--output", str(tmp_path / "mean"), *words]) == 0
    rows = lines_of(capsys)[1:-1]
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    found = [row[1] for row in rows]
    assert found == weights if weights else sum(map(float, found)) == pytest.approx(1.0, abs=1e-3)


def test_the_comparison_stands_side_by_side(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(trained.rglob("*"))
    assert run(["merge", str(trained), "--compare", "--window", "2"]) == 0
    rows = lines_of(capsys)
    assert rows[0] == ["method", "checkpoints", "perplexity", "at", "block", "8"]
    assert [row[0] for row in rows[1:]] == ["newest", "best", "window", "ema"]
    assert sorted(trained.rglob("*")) == before
    assert run(["merge", str(trained), "--compare", "--window", "50", "--output", str(tmp_path / "mean")]) == 0
    rows = lines_of(capsys)
    assert rows[3][:4] == ["window", "-", "not", "possible:"]
    assert rows[2][2] == rows[-1][-1], "the merge that was written has the figure of the comparison"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["RUN", "--output", "new", "--window", "2"],
            "--window: has no meaning for --method best; set --method window",
        ),
        (["RUN", "--output", "new", "--method", "ema", "--best", "2"], "--best: has no meaning for --method ema; set"),
        (["RUN", "--output", "new", "--weights", "1,2"], "--weights: weighs checkpoints that are named; a run's are"),
        (["RUN"], "Missing option '--output'."),
        (["RUN", "--output", "ONE", "--compare"], "ONE: output folder is not empty; choose another path or remove it"),
        (["RUN", "--output", "new", "--best", "0"], "best: 0 is below 1; give the number of checkpoints to average"),
        (["RUN", "--output", "new", "--method", "ema", "--decay", "1"], "decay: 1.0 is not in [0, 1); give the share"),
        (["RUN", "--output", "new", "--method", "window", "--window", "50"], "RUN: window of 50, but only the last"),
        (["ONE", "ONE", "--output", "new", "--method", "ema"], "--method: chooses among a run's checkpoints; leave it"),
        (["ONE", "ONE", "--compare"], "--compare: chooses among a run's checkpoints; leave it out, or name one run"),
        (["ONE", "ONE", "--output", "new", "--weights", "1;2"], "--weights: '1;2' is no list of numbers; write one"),
        (
            ["ONE", "ONE", "--output", "new", "--weights", "1"],
            "weights: 1 for 2 checkpoints; give one for each, or none",
        ),
    ],
)
def test_what_cannot_be_merged_is_one_line(
    words: list[str],
    message: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").symlink_to(trained)
    (tmp_path / "ONE").symlink_to(trained.parent / "converted")
    capsys.readouterr()
    assert run(["merge", *words]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"difflm: {message}")
    assert printed.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_adapters_are_merged_into_their_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_parent(tmp_path / "base")
    for seed in (1, 2):
        save_adapter(adapted(base, seed=seed, token_ids=()), tmp_path / f"a{seed}")
    one, two, output = (str(tmp_path / name) for name in ("a1", "a2", "merged"))
    assert run(["merge", one, "--output", output]) == 0
    assert capsys.readouterr().out == f"{output}: adapter, merged into the base\n"
    base.rename(tmp_path / "moved")
    assert run(["merge", one, two, "--weights", "3,1", "--output", output + "2"]) == 2
    assert "base_model_name_or_path" in capsys.readouterr().err
    words = ["--base", str(tmp_path / "moved"), "--dtype", "bfloat16"]
    assert run(["merge", one, two, "--weights", "3,1", *words, "--output", output + "2"]) == 0
    assert capsys.readouterr().out == f"{output}2: mean of 2 adapters, merged into the base\n"
    assert {each.dtype for each in load_file(tmp_path / "merged2" / "model.safetensors").values()} == {torch.bfloat16}


def test_base_and_dtype_are_for_what_is_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "x")
    assert run(["merge", str(trained), "--dtype", "float32", "--output", output]) == 2
    assert "--dtype: float32 is for checkpoints and adapters that are named, not for a run" in capsys.readouterr().err
    parent = str(trained.parent / "parent")
    assert run(["merge", parent, "--base", parent, "--output", output]) == 2
    assert "is the base of adapters, but" in capsys.readouterr().err


@pytest.fixture(scope="module")
def drafting(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drafting") / "run"
    Trainer(drafting_run(files, folder)).train()
    return folder


def steps_of(drafting: Path) -> list[Path]:
    return sorted(drafting.glob("checkpoints/step-*"))


def test_a_drafting_run_becomes_an_adapter_that_is_tuned_and_generates(
    drafting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drafter, prompts = str(tmp_path / "drafter"), tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "the fox"}\n')
    tuning = ["--prompts", str(prompts), "--max-new-tokens", "8", "--window", "4"]
    step = steps_of(drafting)[-1]
    assert run(["tune", str(step), *tuning]) == 2
    assert f"difflm merge {step} --output FOLDER first and tune FOLDER, or --dry-run" in capsys.readouterr().err
    assert run(["merge", str(drafting), "--output", drafter, "--dtype", "bfloat16"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{drafter}: adapter of {drafting / 'checkpoints' / 'step-'}")
    assert " tokens per cycle on validation rows, the most of " in printed
    assert {each.dtype for each in load_file(tmp_path / "drafter" / "adapter_model.safetensors").values()} == {
        torch.bfloat16
    }
    card = (tmp_path / "drafter" / "README.md").read_text(encoding="utf-8")
    assert "for masked rows alone" in card
    assert "## Training" in card
    assert run(["tune", drafter, *tuning]) == 0
    assert f"written to {drafter}/generation_config.json" in capsys.readouterr().out
    assert run(["generate", drafter, "-p", "the fox", "--max-new-tokens", "8"]) == 0
    assert "as generation_config.json says so" in capsys.readouterr().err
    # What tune wrote stays with the adapter.
    again = tmp_path / "again"
    assert run(["merge", drafter, "--output", str(again)]) == 0
    assert capsys.readouterr().out == f"{again}: adapter of {drafter}\n"
    for name in ("adapter_model.safetensors", "generation_config.json", "difflm.json", "README.md"):
        assert (again / name).read_bytes() == (tmp_path / "drafter" / name).read_bytes()


def test_a_checkpoint_of_a_drafting_run_gives_itself(
    drafting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (steps_of(drafting)[0], steps_of(drafting)[-1]):
        output = tmp_path / step.name
        assert run(["merge", str(step), "--output", str(output), "--fresh"]) == 0
        assert capsys.readouterr().out == f"{output}: adapter of {step}\n"
        one, two = (load_file(each / "adapter_model.safetensors") for each in (step, output))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert {each.name for each in output.iterdir()} == {
            "adapter_config.json", "adapter_model.safetensors", "difflm.json", "README.md",
        }  # fmt: skip
    write_json(tmp_path / step.name / "generation_config.json", {"decoding": "verified"})
    output = str(tmp_path / "third")
    assert run(["merge", str(tmp_path / step.name), "--output", output, "--dtype", "float16"]) == 0
    assert (tmp_path / "third" / "generation_config.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["RUN", "--method", "best"],
            "--method: is for means of checkpoints, but the adapter of RUN only drafts and is",
        ),
        (
            ["RUN", "--best", "2"],
            "--best: is for means of checkpoints, but the adapter of RUN only drafts and is taken",
        ),
        (["STEP", "--window", "2"], "--window: is for means of checkpoints, but the adapter of STEP only drafts"),
        (["RUN", "--shape", "sqrt"], "--shape: is for means of checkpoints, but the adapter of RUN only drafts"),
        (["STEP", "--decay", "0.5"], "--decay: is for means of checkpoints, but the adapter of STEP only drafts"),
        (["STEP", "--weights", "1"], "--weights: is for means of checkpoints, but the adapter of STEP only drafts"),
        (["RUN", "--compare"], "--compare: is for means of checkpoints, but the adapter of RUN only drafts"),
        (
            ["STEP", "STEP"],
            "PATHS: 2 folders, but the adapter of STEP only drafts: it stays an adapter, and the mean of",
        ),
        (["RUN", "RUN"], "PATHS: 2 folders, but the adapter of RUN only drafts: it stays an adapter, and the mean of"),
        (
            ["BASE", "STEP"],
            "PATHS: 2 folders, but the adapter of STEP only drafts: it stays an adapter, and the mean of",
        ),
        (["RUN", "--output", "STEP"], "STEP: output folder is not empty; choose another path or remove it"),
        (["STEP", "--base", "OTHER"], "OTHER: config.json or weights are not those that the adapter was trained on"),
    ],
)
def test_what_an_adapter_that_only_drafts_refuses(
    words: list[str],
    message: str,
    drafting: Path,
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"RUN": drafting, "STEP": steps_of(drafting)[0], "BASE": files["shift"], "OTHER": files["paper"]}
    for name, place in places.items():
        (tmp_path / name).symlink_to(place)
    assert run(["merge", "--output", "new", *words]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"difflm: {message}")
    assert printed.count("\n") == 1
    assert not (tmp_path / "new").exists()
