"""metrics.jsonl: every step once, also after an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from difflm.errors import CheckpointError
from difflm.plots import read_rows
from difflm.training.metrics import MetricsLog, peak_memory


def test_a_resumed_log_drops_what_the_checkpoint_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, step=0)
    for step in range(5):
        log.write({"kind": "train", "step": step})
    with path.open("a") as file:
        file.write('{"kind": "train", "st')  # cut by a crash
    assert [row["step"] for row in read_rows(path)] == [0, 1, 2, 3, 4]
    MetricsLog(path, step=2).write({"kind": "train", "step": 3, "again": True})
    rows = read_rows(path)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows[-1]["again"]
    MetricsLog(path, step=0)
    assert read_rows(path) == []


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, step=0)
    log.write({"kind": "train", "step": 1})

    def full(self: Path, *args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    for name, action in (("open", lambda: log.write({"step": 2})), ("write_text", lambda: MetricsLog(path, step=1))):
        monkeypatch.setattr(Path, name, full)
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl: cannot be written \(No space left on device\)"):
            action()
        monkeypatch.undo()
    assert [row["step"] for row in read_rows(path)] == [1]


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_memory("cpu")
    assert before is not None
    assert before > 20 * 2**20, "bytes, not KiB"
    held = torch.ones(256 * 2**20, dtype=torch.uint8)
    after = peak_memory("cpu")
    assert after is not None
    assert after >= before + (0 if before > 700 * 2**20 else 100 * 2**20)
    assert after > held.numel()
