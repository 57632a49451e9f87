"""The picture of a run: what is drawn, and what is refused."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from difflm import plots
from difflm.errors import ConfigError, DataError

ROWS = [
    {"kind": "validation", "num_tokens": 0, "perplexity": {"1": 30.0, "8": 600.0}, "ar_perplexity": 30.0},
    {"kind": "train", "num_tokens": 100, "loss": 5.0, "block_size": 1, "stage": 0},
    {"kind": "train", "num_tokens": 200, "loss": 4.0, "block_size": 8, "stage": 1},
    {"kind": "validation", "num_tokens": 200, "perplexity": {"1": 29.0, "8": 90.0}, "ar_perplexity": None},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_png_is_written(tmp_path: Path) -> None:
    plots.plot_training(write(tmp_path / "metrics.jsonl", ROWS), tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_next_token_runs_have_no_block_size(tmp_path: Path) -> None:
    rows = [{"kind": "train", "num_tokens": 5, "loss": 1.0, "block_size": None}]
    plots.plot_training(write(tmp_path / "metrics.jsonl", rows), tmp_path / "run.png")
    assert (tmp_path / "run.png").is_file()


def test_a_line_cut_short_at_the_end_is_left_out_and_one_before_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", ROWS)
    whole = path.read_text()
    path.write_text(whole + '{"kind": "tra')
    assert plots.read_rows(path) == ROWS
    path.write_text('{"kind": "tra\n' + whole)
    with pytest.raises(DataError, match=r"metrics.jsonl:1: not JSON"):
        plots.read_rows(path)


def test_files_without_training_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row of kind 'train'"):
        plots.plot_training(write(tmp_path / "metrics.jsonl", ROWS[:1]), tmp_path / "run.png")
    with pytest.raises(DataError, match="cannot be read"):
        plots.plot_training(tmp_path / "absent.jsonl", tmp_path / "run.png")
    assert not (tmp_path / "run.png").exists()


def test_a_missing_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'difflm\[plot\]'"):
        plots.plot_training(write(tmp_path / "metrics.jsonl", ROWS), tmp_path / "run.png")


def test_smoothing_is_the_mean_of_the_last_values() -> None:
    assert plots.smoothed([1.0, 2.0, 3.0, 4.0], window=2) == [1.0, 1.5, 2.5, 3.5]
    assert plots.smoothed([1.0, 2.0], window=5) == [1.0, 1.5]
