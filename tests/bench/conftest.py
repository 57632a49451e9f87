"""One small benchmark run, shared by the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from difflm.bench.decode import DecodeBench, bench_decode
from difflm.checkpoints.convert import convert
from difflm.decode.request import SamplingParams
from tests.drafters import write_drafters
from tests.standins import write_parent


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bench")
    parent = write_parent(folder / "parent")
    convert(parent, folder / "converted", block_size=8)
    return folder / "converted", parent


@pytest.fixture(scope="session")
def result(models: tuple[Path, Path]) -> DecodeBench:
    params = SamplingParams(max_new_tokens=12, min_accept=3, threshold=1.0, ignore_eos=True)
    return bench_decode(
        *models, ["in the beginning", [1, 2, 3]], params=params, dtypes=("float32",), threads=(1,), repeats=2
    )


@pytest.fixture(scope="session")
def drafted(tmp_path_factory: pytest.TempPathFactory) -> DecodeBench:
    """Full weights that draft, beside their parent, at both dtypes."""
    folder = write_drafters(tmp_path_factory.mktemp("drafted"))
    params = SamplingParams(max_new_tokens=20, ignore_eos=True)
    return bench_decode(
        folder / "base", folder / "parent", ["in the", [1, 2, 3]], params=params, threads=(1,), repeats=2
    )
