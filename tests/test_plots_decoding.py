"""Pictures of decoding: files are written, whatever was left open."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from difflm.errors import ConfigError
from difflm.plots_decoding import plot_steps, plot_sweep


@pytest.mark.parametrize("block_size", [1, 4])
def test_step_maps_of_any_length_are_drawn(block_size: int, tmp_path: Path) -> None:
    for steps in ([0, 0, 1, 2, 1], [0], [1] * 40):
        confidences = [None if step == 0 else 0.5 for step in steps]
        path = tmp_path / "steps.png"
        plot_steps(
            path,
            block_size=block_size,
            steps=steps,
            confidences=confidences,
            edits=[1, *[0] * (len(steps) - 1)],
            title="t",
        )
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_missing_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'difflm\[plot\]'"):
        plot_steps(tmp_path / "a.png", block_size=4, steps=[1], confidences=[0.5], edits=[0], title="t")


def row(policy: str, block_size: int | None, threshold: float | None, tpf: float, *, pareto: bool) -> dict[str, object]:
    return {
        "policy": policy, "block_size": block_size, "threshold": threshold, "score": 0.5, "low": 0.4, "high": 0.6,
        "tpf": tpf, "tps": 10 * tpf, "pareto": pareto,
    }  # fmt: skip


def test_a_sweep_is_drawn_with_and_without_a_parent(tmp_path: Path) -> None:
    rows = [
        row("native:threshold=0.9", 32, 0.9, 3.0, pareto=True),
        row("native:threshold=0.95", 32, 0.95, 2.0, pareto=False),
        row("native:fixed=4", None, None, 4.0, pareto=False),
    ]
    for parent in (None, row("next_token", None, None, 1.0, pareto=False)):
        path = tmp_path / "sweep.png"
        plot_sweep(path, rows, parent)
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
