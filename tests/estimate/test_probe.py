"""The steps on few layers, in a process of their own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from difflm.errors import DifflmError
from difflm.estimate.probe import probe
from tests.training.runs import config_of


def test_a_fresh_process_measures_and_its_failure_is_one_line(files: dict[str, Path], tmp_path: Path) -> None:
    run = config_of(files, tmp_path / "run")
    speed = probe(run, fill=1.0)
    assert len(speed.micro_steps) == 1
    assert speed.micro_steps[0] > 0
    assert not run.output.exists()
    with pytest.raises(DifflmError, match=r"the steps on few layers failed \(.*absent.*--no-measure"):
        probe(dataclasses.replace(run, model=tmp_path / "absent"), fill=1.0)
