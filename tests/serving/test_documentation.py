"""The commands of docs/serving.md, as a reader types them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from difflm.checkpoints.loading import LoadedModel
from tests.serving.servers import Running, serving

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:bash|text)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.lstrip().startswith("curl ")
]


@pytest.fixture(scope="module")
def served(loaded: LoadedModel) -> Iterator[Running]:
    with serving(loaded, name="converted") as running:
        yield running


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("command", COMMANDS, ids=lambda line: re.sub(r"\W+", "-", line)[:60])
def test_a_command_is_answered(command: str, served: Running) -> None:
    asked = command.replace("http://127.0.0.1:8000", served.address).replace(
        "curl ", "curl --silent --show-error --fail-with-body ", 1
    )
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    if '"stream": true' in command:
        assert done.stdout.endswith("data: [DONE]\n\n")
    else:
        assert "error" not in json.loads(done.stdout)
