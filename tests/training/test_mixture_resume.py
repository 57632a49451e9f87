"""Runs on weighted sources, raw and prepared: interrupted anywhere they end as whole ones, and both are one run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from difflm.runs import train
from difflm.training.prepare import prepare
from tests.standins import write_texts
from tests.training.runs import config_of
from tests.training.test_resume import result_of, rows_of, run_with_stops


def test_a_mixture_resumes_and_does_not_care_where_its_rows_are_stored(files: dict[str, Path], tmp_path: Path) -> None:
    paths = [write_texts(tmp_path / f"{name}.jsonl", documents=count) for name, count in (("a", 18), ("b", 5))]
    data: dict[str, Any] = {"row_length": 64, "validation_fraction": 0.1}
    raw_data = {**data, "paths": [str(path) for path in paths], "weights": [1.0, 2.0]}
    options: dict[str, Any] = {"curriculum": [{"block_size": 4, "tokens": 2400}]}
    raw = config_of(files, tmp_path / "raw", data=raw_data, **options)
    expected = result_of(train(raw))
    last = expected[2]["step"]
    assert expected[2]["epoch"] > 0, "the run goes through more than one epoch of the mixture"
    part = dataclasses.replace(raw, output=tmp_path / "part")
    assert result_of(run_with_stops(part, [1, last // 2, last - 1])) == expected
    assert rows_of(part.output) == rows_of(raw.output)

    prepare(paths, model=files["paper"], output=tmp_path / "p", weights=(1.0, 2.0), validation_fraction=0.1)
    stored = config_of(files, tmp_path / "stored", data={**data, "paths": [str(tmp_path / "p")]}, **options)
    assert result_of(train(stored)) == expected
    assert rows_of(stored.output) == rows_of(raw.output)
