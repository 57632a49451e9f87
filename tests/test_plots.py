"""The picture of a run: what is drawn, and what is refused."""

from __future__ import annotations

import builtins
import json
import math
import re
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


def test_long_curves_keep_their_spikes(tmp_path: Path) -> None:
    points = [(float(place), 100.0 if place == 7777 else 0.0) for place in range(20000)]
    kept = plots._thinned(points)
    assert len(kept) <= 1200
    assert (7777.0, 100.0) in kept
    assert kept == sorted(kept)
    assert plots._thinned(points[:50]) == points[:50]


@pytest.mark.parametrize(
    ("values", "log"), [((1.0, 3.9), False), ((1.0, 4.0), True), ((0.0, 9.0), False), ((-1.0, 9.0), False), ((), False)]
)
def test_decades_are_for_values_that_span_some(values: tuple[float, ...], log: bool) -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    plots._scale(axes, 10, values)
    assert (axes.get_yscale() == "log") == log


def test_a_chart_is_one_element_that_needs_nothing_and_is_the_same_every_time() -> None:
    chart = plots.Chart(
        unit="nats",
        lines=[
            plots.Line(label="loss", points=[(1.0, 2.0), (2.0, math.nan), (3.0, 1.0)]),
            plots.Line(label="rate", points=[(1.0, 1e-4), (3.0, 1e-5)], right=True, color=1, dashed=True),
        ],
        right_unit="rate",
        bands=[(1.0, 2.0)],
        end=3.0,
    )
    found = plots.draw_svg(chart, name="one")
    assert found.startswith("<svg ")
    assert found.endswith("</svg>")
    for absent in ("style=", "<style", "<metadata", "://", "<image", "xlink"):
        assert absent not in found
    assert f'fill="{plots.INK}"' in found
    assert f'stroke="{plots.RULE}"' in found
    assert f'stroke="{plots.COLORS[0]}"' in found
    assert set(re.findall(r' id="(\w+)-', found)) == {"one"}
    assert plots.draw_svg(chart, name="one") == found


def test_a_heat_map_is_drawn_as_shapes_with_gaps() -> None:
    def drawn(cells: list[float]) -> str:
        heat = plots.Heat(unit="nats", edges=[0.0, 1.0, 2.0], cells=[cells], rows=[0.0, 1.0], rows_unit="rate")
        return plots.draw_svg(heat, name="heat")

    whole, gap = drawn([1.0, 1.0]), drawn([1.0, math.nan])
    assert "<image" not in whole
    filled = [len(re.findall(r'fill="#', found)) for found in (whole, gap)]
    assert filled[0] == filled[1] + 1
