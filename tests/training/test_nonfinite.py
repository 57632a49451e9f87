"""A step that is not finite: what is said and dumped, that nothing else happens, and when it may be skipped."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from difflm.data.loader import Loader
from difflm.diffusion.noise import RowNoise
from difflm.diffusion.objectives import Objective
from difflm.display.progress import TrainingLines
from difflm.errors import ConfigError, DifflmError
from difflm.plots import read_rows
from difflm.runs import train
from difflm.training.nonfinite import NonFiniteError, is_bad, row_losses, sources_of
from difflm.training.run_folder import Resume
from difflm.training.state import checkpoint_folders, read_state
from difflm.training.trainer import Trainer
from difflm.types import Batch, ModelInput, TokenScores
from tests.training.runs import config_of


@dataclass(frozen=True)
class Poison:
    """An objective that makes the loss of some draws of the rows `rows` a NaN."""

    inner: Objective
    rows: tuple[int, ...]
    epoch: int = 0

    def prepare(self, batch: Batch, *, mask_id: int | None, noise: RowNoise) -> ModelInput:
        inputs = self.inner.prepare(batch, mask_id=mask_id, noise=noise)
        width = inputs.token_BN.shape[1]
        terms = []
        for term in inputs.terms:
            owner_M = term.row_M // width
            bad_M = torch.isin(inputs.row_B[owner_M], torch.tensor(self.rows)) & (inputs.epoch_B[owner_M] == self.epoch)
            terms.append(dataclasses.replace(term, weight_M=term.weight_M.masked_fill(bad_M, float("nan"))))
        return dataclasses.replace(inputs, terms=tuple(terms))

    def loss(self, scores: tuple[TokenScores, ...], inputs: ModelInput) -> tuple[Tensor, ...]:
        return self.inner.loss(scores, inputs)


def snapshot(trainer: Trainer) -> dict[str, Tensor]:
    weights = {f"w.{name}": each.detach().clone() for name, each in trainer.loaded.model.named_parameters()}
    return weights | {f"m.{name}": each.clone() for name, each in trainer.optimizer.named_state().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def poisoned(
    files: dict[str, Path],
    output: Path,
    *,
    rows: int = 1,
    resume: Resume = "never",
    **extra: Any,
) -> tuple[Trainer, tuple[int, ...]]:
    """Return a trainer in which the first `rows` rows of the second step have a loss of NaN, and those rows."""
    options: dict[str, Any] = {"accumulation": 2, "rows_per_batch": 2} | extra
    config = config_of(files, output, **options)
    bad: list[int] = []
    trainer = Trainer(config, resume=resume, objective=lambda inner: Poison(inner, tuple(bad)))
    bad += Loader(trainer.loader.order).next(8).row_B[4 : 4 + rows]
    return trainer, tuple(bad)


def test_a_loss_that_is_not_finite_stops_with_rows_lines_and_a_dump(files: dict[str, Path], tmp_path: Path) -> None:
    trainer, (row,) = poisoned(files, tmp_path / "run")
    trainer.train_step()
    before = snapshot(trainer)
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    places = sources_of(trainer.rows, row)
    dump = tmp_path / "run" / "dumps" / "step-00000002"
    text = f"step 2: the loss of rows {row} is not finite ({', '.join(places[:3])}"
    assert str(caught.value).startswith(text)
    assert str(caught.value).endswith(f"the other 3 rows are fine; check these documents; dump in {dump}")
    assert "\n" not in str(caught.value)
    assert all(place.startswith(f"{files['texts']}:") for place in places)
    assert same(before, snapshot(trainer))
    record = json.loads((dump / "step.json").read_text())
    assert record["step"] == 2
    assert record["loss"] == {"diffusion": "nan"}
    assert [each["row"] for each in record["rows"] if each["loss"]["diffusion"] == "nan"] == [row]
    assert [each["where"] for each in record["rows"] if each["row"] == row] == [list(places)]
    assert record["weights_not_finite"] == []
    assert record["gradients_not_finite"] != []
    assert record["config"]["seed"] == 0
    tensors = load_file(dump / "tensors.safetensors")
    assert tensors["0.row_B"].tolist() + tensors["1.row_B"].tolist() == [each["row"] for each in record["rows"]]
    assert tensors["0.token_BN"].shape == tensors["0.masked_BN"].shape == (2, 128)
    assert bool(tensors["0.diffusion.weight_M"].isnan().any())
    assert not bool(tensors["1.diffusion.weight_M"].isnan().any())
    assert checkpoint_folders(tmp_path / "run") == []  # a state that may be about to diverge replaces nothing


def test_a_skipped_step_touches_nothing_but_the_counters(files: dict[str, Path], tmp_path: Path) -> None:
    trainer, (row,) = poisoned(files, tmp_path / "run", nonfinite={"action": "skip"})
    trainer.train_step()
    before, tokens = snapshot(trainer), trainer.state.tokens
    metrics = trainer.train_step()
    assert same(before, snapshot(trainer))
    assert all(each.grad is None for each in trainer.loaded.model.parameters())
    assert (metrics["kind"], metrics["step"], metrics["skipped"]) == ("skipped", 2, 1)
    assert (trainer.state.step, trainer.state.skipped) == (2, 1)
    assert trainer.state.tokens == metrics["num_tokens"] > tokens
    assert (trainer.state.epoch, trainer.state.position) == (trainer.loader.state.epoch, trainer.loader.state.position)
    assert metrics["reason"].startswith(f"step 2: the loss of rows {row} is not finite")
    assert metrics["budget"] == 10
    assert trainer.train_step()["kind"] == "train"
    assert not same(before, snapshot(trainer))


def test_the_budget_is_of_the_whole_run_resumes_included(files: dict[str, Path], tmp_path: Path) -> None:
    """Every step fails (all rows of both epochs): two are skipped, a resumed run knows that, the third stops it."""
    options: dict[str, Any] = {"nonfinite": {"action": "skip", "budget": 2}, "rows_per_batch": 4}
    config = config_of(files, tmp_path / "run", **options)
    every = tuple(range(1000))
    first = Trainer(config, objective=lambda inner: Poison(inner, every))
    first.train_step()
    first._save()
    first.close()
    folder = checkpoint_folders(config.output)[-1]
    assert (read_state(folder).skipped, read_state(folder).step) == (1, 1)
    second = Trainer(config, resume="auto", objective=lambda inner: Poison(inner, every))
    assert second.state.skipped == 1
    with pytest.raises(
        NonFiniteError, match=r"2 steps were skipped before it, .*train\.nonfinite\.budget \(2\) allows"
    ):
        second.train()
    assert second.state.skipped == 2
    assert [row["step"] for row in read_rows(config.output / "metrics.jsonl") if row["kind"] == "skipped"] == [2]
    second.close()


def test_a_whole_run_with_a_skipped_step_is_shown_and_logged(files: dict[str, Path], tmp_path: Path) -> None:
    trainer, bad = poisoned(files, tmp_path / "order")
    trainer.close()
    config = config_of(files, tmp_path / "run", rows_per_batch=2, accumulation=2, nonfinite={"action": "skip"})
    told = io.StringIO()
    checkpoint = train(config, observer=TrainingLines(told), objective=lambda inner: Poison(inner, bad))
    (line,) = [each for each in told.getvalue().splitlines() if each.startswith("skipped")]
    assert line.startswith(f"skipped step 2: the loss of rows {bad[0]} is not finite")
    assert line.endswith("dumps/step-00000002 (1 of 10 that train.nonfinite.budget allows)")
    rows = [row for row in read_rows(config.output / "metrics.jsonl") if row["kind"] in ("train", "skipped")]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert [row["kind"] for row in rows].index("skipped") == 1
    assert read_state(checkpoint).skipped == 1


def test_a_run_with_skipped_steps_resumes_bit_for_bit(files: dict[str, Path], tmp_path: Path) -> None:
    results = []
    for name in ("whole", "part"):
        options: dict[str, Any] = {"nonfinite": {"action": "skip"}, "rows": 2}
        trainer, _ = poisoned(files, tmp_path / name, **options)
        if name == "part":
            trainer.train_step()
            trainer.train_step()
            trainer._save()
            trainer.close()
            trainer, _ = poisoned(files, tmp_path / name, resume="auto", **options)
        while not trainer.finished:
            trainer.train_step()
        results.append(snapshot(trainer))
        assert trainer.state.skipped == 1
        trainer.close()
    assert same(*results)


def test_a_gradient_alone_is_enough(files: dict[str, Path], tmp_path: Path) -> None:
    trainer = Trainer(config_of(files, tmp_path / "run", dtype="bfloat16"))
    name, weight = next(iter(trainer.model.named_parameters()))
    weight.register_hook(lambda gradient: gradient * float("inf"))
    message = (
        r"step 1: the loss is finite but the gradient norm is (nan|inf) \(rows .*; lower train\.optimizer\.learning_r"
    )
    with pytest.raises(NonFiniteError, match=message) as caught:
        trainer.train_step()
    assert "or use train.dtype: float32" in str(caught.value)
    record = json.loads((tmp_path / "run" / "dumps" / "step-00000001" / "step.json").read_text())
    assert record["gradients_not_finite"] == [name]


def test_weights_that_were_never_finite_are_told_from_data(files: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(files["paper"], tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    message = f"train.model: {tmp_path / 'model'} has weights that are not finite (layers.1.mlp.up.weight); use another"
    with pytest.raises(ConfigError, match=re.escape(message)):
        Trainer(config_of(files | {"paper": tmp_path / "model"}, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_weights_that_stopped_being_finite_stop_the_run(files: dict[str, Path], tmp_path: Path, action: str) -> None:
    """No step can be finite any more: nothing to skip to."""
    for steps, words in ((0, "of the checkpoint it resumed from are"), (1, "have overflowed in the steps before it: ")):
        trainer = Trainer(config_of(files, tmp_path / f"{action}-{steps}", nonfinite={"action": action}))
        for _ in range(steps):
            trainer.train_step()
        with torch.no_grad():
            dict(trainer.loaded.model.named_parameters())["layers.0.mlp.up.weight"][0, 0] = float("inf")
        with pytest.raises(NonFiniteError, match=rf"step {steps + 1}: weights {words}.*\(layers\.0\.mlp\.up\.weight\)"):
            trainer.train_step()
        trainer.close()


def test_weights_that_overflowed_point_to_the_learning_rate(files: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(files, tmp_path / "run", lr_schedule={"kind": "constant"}, optimizer={"learning_rate": 1e38})
    trainer = Trainer(config)
    with pytest.raises(NonFiniteError, match=r"lower train\.optimizer\.learning_rate") as caught:
        trainer.train()
    assert "has weights" not in str(caught.value)


@pytest.mark.parametrize("validated", [True, False])
def test_weights_that_the_last_update_broke_are_never_saved(
    files: dict[str, Path], tmp_path: Path, validated: bool
) -> None:
    """The loss and the gradient of that step were finite, and no step follows that would tell."""
    without: dict[str, Any] = {"data": {"paths": [str(files["texts"])], "row_length": 64}}
    config = config_of(
        files,
        tmp_path / "run",
        curriculum=[{"block_size": 4, "tokens": 5_000}],
        lr_schedule={"kind": "constant"},
        checkpoint={"every_tokens": 1, "keep": 1},
        **({} if validated else without),
    )
    trainer = Trainer(config)
    trainer.train_step()
    first = trainer._save()
    for part in trainer.optimizer.parts:
        for group in part.param_groups:
            group["peak"] = 1e39
    with pytest.raises(NonFiniteError, match=r"step 2: its update made .* not finite .* start a new run") as caught:
        trainer.train()
    trainer.close()
    assert "\n" not in str(caught.value)
    assert checkpoint_folders(tmp_path / "run") == [first]
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_row_losses_add_up_to_the_loss(files: dict[str, Path], tmp_path: Path) -> None:
    trainer = Trainer(config_of(files, tmp_path / "run", rows_per_batch=5))
    (inputs,), _ = trainer._draw(trainer.objective_at(0))
    scores = trainer._score(inputs)
    rows = row_losses(inputs, scores, trainer.rows)
    (total,) = trainer.objective_at(0).loss(scores, inputs)
    predicted = [int((inputs.terms[0].row_M // inputs.token_BN.shape[1] == index).sum()) for index in range(5)]
    again = sum(row.losses["diffusion"] * count for row, count in zip(rows, predicted, strict=True))
    assert again == pytest.approx(float(total.detach()), rel=1e-5)
    assert [row.row for row in rows] == inputs.row_B.tolist()
    assert all(row.finite for row in rows)


def test_what_is_bad() -> None:
    assert not is_bad({"diffusion": 1.0, "ar": 0.0}, 2.0)
    assert is_bad({"diffusion": 1.0, "ar": float("inf")}, 2.0)
    assert is_bad({"diffusion": 1.0}, float("nan"))
    assert issubclass(NonFiniteError, DifflmError)
