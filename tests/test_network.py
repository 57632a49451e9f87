"""No telemetry: nothing opens a connection unless it is asked to, by a hub id, a tracker or spans of a server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.standins import write_parent, write_texts
from tests.test_layers import FILES, ROOT, TREES, imports_of

NETWORK = {
    "aiohttp", "ftplib", "http", "httpx", "requests", "smtplib", "socket", "socketserver", "ssl", "telnetlib", "urllib",
    "urllib3", "webbrowser", "xmlrpc",
}  # fmt: skip
ON_REQUEST = {
    "huggingface_hub": "difflm/checkpoints/hub.py",
    "wandb": "difflm/training/tracking.py",
    "trackio": "difflm/training/tracking.py",
    "httpx2": "difflm/chat/remote.py",
    "opentelemetry": "difflm/serving/telemetry.py",
}

# Every way out of the process is closed; the whole path runs all the same.
CLOSED = """
import socket, sys
def refuse(*arguments, **options):
    raise AssertionError(f"a connection was tried: {arguments}")
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
socket.getaddrinfo = socket.create_connection = refuse
import difflm
difflm.convert("parent", "converted", block_size=4)
checkpoint = difflm.train({
    "model": "converted", "output": "run", "threads": 1,
    "data": {"paths": ["texts.jsonl"], "row_length": 64, "validation_fraction": 0.2},
    "curriculum": [{"block_size": 4, "tokens": 200}], "validation": {"rows": 2, "block_sizes": [4]},
})
model = difflm.load_model(checkpoint)
print(difflm.generate(model, ["In the"], difflm.SamplingParams(max_new_tokens=4))[0].num_tokens)
"""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_network_libraries_are_imported_only_where_asked_for(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    for name in imports_of(TREES[path]):
        library = name.split(".")[0]
        assert library not in NETWORK or name.startswith("urllib.parse"), f"{place} imports {name}"
        assert place == ON_REQUEST.get(library, place), f"{place} imports {name}"


def test_the_whole_path_opens_no_connection(tmp_path: Path) -> None:
    write_parent(tmp_path / "parent")
    write_texts(tmp_path / "texts.jsonl")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-c", CLOSED],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1
