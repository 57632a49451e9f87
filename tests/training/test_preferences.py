"""The reference of a run, and figures that are means over pairs whatever the micro-batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from difflm.checkpoints.convert import convert
from difflm.checkpoints.loading import load_model
from difflm.diffusion.noise import RowNoise
from difflm.diffusion.preference import DirectPreference
from difflm.errors import ConfigError
from difflm.scoring import score_input
from difflm.training.preferences import PreferenceTally, Reference, open_reference
from tests.decode.tiny import tiny
from tests.diffusion.test_preference import ROWS, pairs_of
from tests.rows import MASK
from tests.training.runs import config_of

OBJECTIVE = DirectPreference(block_size=4, beta=0.2, samples=3)


def test_figures_are_those_of_a_loop_over_pairs() -> None:
    policy, other = tiny(seed=1).model, tiny(seed=2).model
    reference = Reference(model=other, chunk=7, backend="auto")
    tally, rewards, variances = PreferenceTally(), [], []
    for rows in ([ROWS[0]], [ROWS[1]]):
        inputs = OBJECTIVE.prepare(pairs_of(rows), mask_id=MASK, noise=RowNoise(0))
        inputs = reference.given(policy, OBJECTIVE, inputs)
        scores = score_input(policy, inputs)
        tally.add(OBJECTIVE, scores, inputs)
        gain = 0.2 * (OBJECTIVE.elbos(scores, inputs) - OBJECTIVE.elbos(score_input(other, inputs), inputs)).detach()
        for chosen, rejected in gain:
            rewards.append((float(chosen.mean()), float(rejected.mean())))
            variances.append(float(torch.var(chosen - rejected)) / 3)
    row = tally.row()
    count = len(rewards)
    assert row["pairs"] == count == 3
    assert row["rewards"]["chosen"] == pytest.approx(sum(one for one, _ in rewards) / count)
    assert row["rewards"]["rejected"] == pytest.approx(sum(two for _, two in rewards) / count)
    assert row["rewards"]["margins"] == pytest.approx(sum(one - two for one, two in rewards) / count)
    assert row["rewards"]["accuracies"] == pytest.approx(sum(one > two for one, two in rewards) / count)
    assert row["margin_variance"] == pytest.approx(sum(variances) / count)
    assert row["answer_tokens"] == {"chosen": 5.0, "rejected": pytest.approx(16 / 3)}
    assert row["logps"]["chosen"] < 0
    assert "variance" in tally.text()
    assert PreferenceTally().row() == {}


def test_one_sample_has_no_variance() -> None:
    single = replace(OBJECTIVE, samples=1)
    model = tiny(seed=1).model
    inputs = single.prepare(pairs_of(ROWS), mask_id=MASK, noise=RowNoise(0))
    inputs = Reference(model=model, chunk=512, backend="auto").given(model, single, inputs)
    tally = PreferenceTally()
    tally.add(single, score_input(model, inputs), inputs)
    assert tally.row()["margin_variance"] is None
    assert "variance" not in tally.text()
    assert tally.row()["rewards"]["accuracies"] == 0, "no difference is no preference"


def test_the_reference_is_the_start_or_a_named_checkpoint(files: dict[str, Path], tmp_path: Path) -> None:
    loaded = load_model(files["paper"])
    assert open_reference(config_of(files, tmp_path / "a"), loaded) is None
    found = open_reference(config_of(files, tmp_path / "b", objective={"kind": "dpo"}), loaded)
    assert found is not None
    assert found.model is not None
    assert not any(each.requires_grad for each in found.model.parameters())
    assert torch.equal(found.model.embedding.weight, loaded.model.embedding.weight)
    other = {"kind": "dpo", "reference": str(files["shift"])}
    with pytest.raises(ConfigError, match=r"objective.reference: .* is read otherwise than"):
        open_reference(config_of(files, tmp_path / "c", objective=other), loaded)
    twin = convert(files["parent"], tmp_path / "twin", block_size=8)
    named = {"kind": "dpo", "reference": str(tmp_path / "twin")}
    with_adapter = config_of(files, tmp_path / "d", objective=named, lora={"rank": 2})
    assert twin is not None
    found = open_reference(with_adapter, loaded)
    assert found is not None
    assert found.model is not None, "a named checkpoint is a model of its own"
