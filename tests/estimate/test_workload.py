"""Steps, masks and forwards of a run, against the run itself and against closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from difflm.estimate.workload import plain_rows, workload_of
from difflm.plots import read_rows
from difflm.training.config import TrainConfig
from difflm.training.config_io import config_from_tree
from difflm.training.trainer import Trainer
from difflm.types import Parametrisation
from tests.training.runs import config_of


def config(**changes: Any) -> TrainConfig:
    tree: dict[str, Any] = {
        "model": "m", "output": "o", "data": {"paths": ["d"], "row_length": 64},
        "curriculum": [{"block_size": 1, "tokens": 1000}, {"block_size": 8, "tokens": 3000}], "rows_per_batch": 2,
    }  # fmt: skip
    return config_from_tree({**tree, **changes})


def test_steps_of_stages_begin_where_a_step_begins() -> None:
    work = workload_of(config(), Parametrisation(), mask_id=9)
    # 128 tokens a step: the eighth step ends at 1024, inside the second stage; the run ends with step 32 at 4096.
    assert [stage.steps for stage in work.stages] == [8, 24]
    assert work.steps == 32
    half = workload_of(config(accumulation=2), Parametrisation(), mask_id=9, fill=0.5)
    assert (half.tokens_per_step, half.rows_per_step, half.steps) == (128, 4, 32)


def test_mask_shares_are_those_of_the_noise() -> None:
    work = workload_of(config(), Parametrisation(), mask_id=9)
    assert work.stages[0].mask_share == 1.0, "every token of a block of one"
    assert work.stages[1].mask_share == pytest.approx(9 / 16, abs=0.03), "1 to 8 of 8, each as likely"
    pairs = workload_of(
        config(objective={"kind": "block_diffusion", "complementary": True}), Parametrisation(), mask_id=9
    )
    assert 1.3 < pairs.stages[1].model_tokens / work.stages[1].model_tokens <= 1.5, "one clean stream for both"
    plain = workload_of(
        config(objective={"kind": "next_token"}, curriculum=[{"tokens": 500}]), Parametrisation(), mask_id=9
    )
    assert plain.stages[0].mask_share is None
    assert plain.stages[0].model_tokens == 128


def test_the_steps_of_a_run_are_those_it_does(files: dict[str, Path], tmp_path: Path) -> None:
    ladder = [{"block_size": 4, "tokens": 700}, {"block_size": "row", "tokens": 900}]
    run = config_of(files, tmp_path / "run", curriculum=ladder, rows_per_batch=1)
    trainer = Trainer(run)
    work = workload_of(run, trainer.parametrisation, mask_id=trainer.mask_id or 0, rows=trainer.rows)
    trainer.train()
    done = [row for row in read_rows(run.output / "metrics.jsonl") if row["kind"] == "train"]
    assert work.steps == pytest.approx(len(done), abs=1)
    assert [stage.steps for stage in work.stages] == pytest.approx(
        [sum(row["stage"] == stage for row in done) for stage in (0, 1)], abs=2
    )
    assert work.measured_fill
    assert work.fill == trainer.rows.counts.fill_rate


def test_plain_rows_are_filled_as_far_as_said() -> None:
    rows = plain_rows(64, rows=3, fill=0.25)
    assert rows.num_tokens() == 3 * 16
    assert int(rows.trainable_BL.sum()) == 3 * 16


def test_rows_of_pairs_hold_two_answers() -> None:
    rows = plain_rows(64, rows=2, fill=0.5, paired=True)
    assert rows.pairs().count == 2
    assert [int((rows.document_BL == document).sum()) for document in (0, 1)] == [32, 32]
    assert rows.position_BL[0, 15:18].tolist() == [15, 0, 1]
    work = workload_of(config(objective={"kind": "dpo", "samples": 3}), Parametrisation(), mask_id=9)
    assert work.stages[1].model_tokens == 2 * 4 * 64, "three samples and one clean stream"
