"""`difflm eval`: the list of tasks, the table, and errors before anything is loaded. See also
tests/evaluation/test_harness.py, which runs the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from difflm.cli.eval import split_tasks, table
from difflm.cli.main import run
from difflm.errors import ConfigError


def test_settings_of_a_generated_task_keep_their_commas() -> None:
    text = "one, a.jsonl,reasoning-gym:chain_sum:min_terms=2,max_terms=3,reasoning-gym:leg_counting,two"
    assert split_tasks(text) == [
        "one", "a.jsonl", "reasoning-gym:chain_sum:min_terms=2,max_terms=3", "reasoning-gym:leg_counting", "two",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="--tasks: it names none"):
        split_tasks(" ,")


def test_the_table_has_a_line_for_each_metric() -> None:
    def metric(value: float, error: float | None) -> dict[str, object]:
        return {"value": value, "standard_error": error, "higher_is_better": True}

    forwards = {"prefill": 2, "denoise": 6, "commit": 2}
    generation = {"forwards": forwards, "tokens_per_forward": 1.5, "tokens_per_second": 30.04}
    tasks = {
        "write": {
            "metrics": {"exact_match": metric(0.5, 0.25), "f1": metric(0.25, None)},
            "questions": 4,
            "cost": {"generation": generation},
        },
        "choose": {"metrics": {"acc": metric(1.0, 0.0)}, "questions": 10, "cost": {"likelihood": {"forwards": 99}}},
        "group": {"metrics": {"acc": metric(0.75, 0.125)}, "questions": None, "cost": None},
    }
    assert table({"tasks": tasks}) == [
        "task    metric        value      +-  questions  forwards   TPF   TPS",
        "write   exact_match  0.5000  0.2500          4         8  1.50  30.0",
        "write   f1           0.2500                  4         8  1.50  30.0",
        "choose  acc          1.0000  0.0000         10        99",
        "group   acc          0.7500  0.1250",
    ]


def test_errors_before_the_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "absent" / "results.json"
    words = ["eval", str(tmp_path / "model")]
    for rest, message in [
        (["--tasks", ","], "difflm: --tasks: it names none; give at least one"),
        (["--tasks", "a", "--output", str(output)], f"difflm: --output: the folder of {output} does not exist"),
        ([], "difflm: Missing option '--tasks'."),
        (["--tasks", "a", "--samples", "0"], "difflm: Invalid value for '--samples'"),
    ]:
        assert run([*words, *rest]) == 2
        assert capsys.readouterr().err.startswith(message)
