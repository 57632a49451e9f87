"""Pictures of decoding: files are written, whatever was left open."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from difflm.errors import ConfigError
from difflm.plots_decoding import plot_steps


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
