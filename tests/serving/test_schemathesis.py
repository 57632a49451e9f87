"""The interface as schemathesis finds it: requests made from our own description, such as fit it and such as do not.

No answer is a 5xx, none has a status, a media type or a form that the description does not name, and what does not fit
is refused.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from difflm.checkpoints.loading import LoadedModel
from difflm.serving.limits import Access, Limits
from tests.serving.servers import serving

PROGRAM = Path(sys.executable).with_name("schemathesis")

# A body may fit its schema and be more than the context holds, or ask for what only goes with another field.
EXCLUDED = "positive_data_acceptance"


def checked(address: str, folder: Path, *words: str) -> None:
    """Run schemathesis against a server, without a database of examples."""
    if not PROGRAM.is_file() and shutil.which("schemathesis") is None:
        pytest.skip("schemathesis is in the extra [dev]; CI has it")
    program = str(PROGRAM) if PROGRAM.is_file() else "schemathesis"
    command = [program, "run", f"{address}/openapi.json", "--no-color"]
    command += ["--exclude-checks", EXCLUDED, "--suppress-health-check", "all", "--request-timeout", "120", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"Selected: (\d+)/(\d+)\s+Tested: (\d+)", done.stdout)
    assert found is not None
    assert len(set(found.groups())) == 1


def test_no_request_is_answered_otherwise_than_described(loaded: LoadedModel, tmp_path: Path) -> None:
    with serving(loaded, limits=Limits(new_tokens=8)) as server:
        words = ("--phases", "examples,fuzzing", "--generation-deterministic", "--max-examples", "12", "--no-shrink")
        checked(server.address, tmp_path, *words)
        assert server.service.bridge.counts.tokens > 0
        assert server.get("/health").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_nor_in_a_long_run_with_a_key(seed: int, loaded: LoadedModel, tmp_path: Path) -> None:
    access = Access(keys=("sesame",))
    with serving(loaded, limits=Limits(new_tokens=8), access=access) as server:
        words = ["--header", "Authorization: Bearer sesame", "--generation-database", "none", "--seed", str(seed)]
        checked(server.address, tmp_path, *words, "--max-examples", "60", "--max-time", "50")
        assert server.get("/health").status_code == 200
        assert server.get("/v1/models").status_code == 401
