"""Peak memory: of this process, and of a measurement in its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from difflm.bench.memory import number_printed_by, peak_resident_mib
from difflm.errors import DifflmError


def test_the_peak_grows_with_what_is_allocated_and_stays() -> None:
    held = torch.ones(400 * 2**18)
    assert float(held[0]) == 1.0
    assert peak_resident_mib() > 400
    del held
    assert peak_resident_mib() > 400


def test_the_peak_of_a_parent_is_not_the_childs() -> None:
    held = torch.ones(1000 * 2**18)
    code = "from difflm.bench.memory import peak_resident_mib as p; print(p())"
    child = float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert peak_resident_mib() >= 1000
    assert child < 900
    assert float(held[0]) == 1.0


def test_a_failing_process_says_why() -> None:
    with pytest.raises(DifflmError, match=r"the peak: .*No module named no_such_module"):
        number_printed_by("no_such_module", [], what="the peak")
