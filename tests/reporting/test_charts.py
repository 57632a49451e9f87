"""Which curves are drawn, and from which numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from difflm.plots import Chart
from difflm.reporting.charts import Figure, figures_of, rate_heat, smoothing_window, stage_bands
from difflm.reporting.facts import read_run
from tests.reporting.runs import train_row, validation_row, write_run

SAMPLED = {"kind": "samples", "step": 8, "num_tokens": 800, "tokens_per_forward": 1.5}


def figures(folder: Path, rows: list[dict[str, Any]], **fields: Any) -> dict[str, Figure]:
    return {each.title: each for each in figures_of(read_run(write_run(folder / "run", rows, **fields)))}


def lines(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    assert isinstance(figure.chart, Chart)
    return {line.label: list(line.points) for line in figure.chart.lines if line.points}


def test_every_figure_shows_its_column(tmp_path: Path) -> None:
    rows = [validation_row(0), *(train_row(step) for step in range(1, 9)), validation_row(8), SAMPLED]
    found = figures(tmp_path, rows)
    assert list(found) == [
        "Training loss",
        "Validation perplexity",
        "Block size",
        "Gradient norm and learning rate",
        "Masked accuracy and mask ratio",
        "Loss by mask rate",
        "Throughput and memory",
        "Tokens per forward",
    ]
    loss = lines(found["Training loss"])
    assert loss["loss"][1] == (200.0, 2.5)
    assert loss["term ar"][0] == (100.0, 2.0)
    perplexity = lines(found["Validation perplexity"])
    assert list(perplexity) == ["block 4", "block 8", "block 16", "AR"], "by size, not by spelling"
    assert perplexity["AR"] == [(0.0, 19.25), (800.0, 19.25)]
    assert lines(found["Throughput and memory"])["memory"][0] == (100.0, 1.0), "GiB"
    assert lines(found["Tokens per forward"])[""] == [(800.0, 1.5)]
    assert all(each.chart.end == 800.0 for each in found.values() if isinstance(each.chart, Chart))


def test_figures_without_anything_to_show_are_left_out(tmp_path: Path) -> None:
    masks = ("loss_by_mask_rate", "tokens_by_mask_rate", "masked_accuracy", "mask_ratio")
    row = {name: value for name, value in train_row(1, block_size=None).items() if name not in masks}
    found = figures(tmp_path, [row], objective={"kind": "next_token"}, curriculum=[{"tokens": 100}])
    assert list(found) == ["Training loss", "Gradient norm and learning rate", "Throughput and memory"]
    assert figures_of(read_run(write_run(tmp_path / "new"))) == []


def test_a_mixture_shows_the_load_of_both_streams(tmp_path: Path) -> None:
    def router(step: int) -> dict[str, Any]:
        fields = {"max_violation": {"mean": 2.0 / step, "layer_1": 9.0}, "dead_experts": {"mean": 0.25}, "entropy": {}}
        return {"noisy": fields, "clean": {**fields, "max_violation": {"mean": 0.5}}, "z_loss": 1.0}

    found = figures(tmp_path, [train_row(step, router=router(step)) for step in (1, 2)])
    load = lines(found["Load of the experts"])
    assert load["noisy: overload"] == [(100.0, 2.0), (200.0, 1.0)]
    assert load["clean: overload"][1] == (200.0, 0.5)
    assert load["noisy: dead experts"][0] == load["clean: dead experts"][0] == (100.0, 0.25)


def test_a_cell_is_a_sum_over_a_count(tmp_path: Path) -> None:
    rows = [
        train_row(1, loss_by_mask_rate={"0.1-0.2": 1.0}, tokens_by_mask_rate={"0.1-0.2": 1}),
        train_row(2, loss_by_mask_rate={"0.1-0.2": 4.0}, tokens_by_mask_rate={"0.1-0.2": 3}),
        train_row(3, loss_by_mask_rate={"0.9-1.0": 2.0}, tokens_by_mask_rate={"0.9-1.0": 5}),
    ]
    heat = rate_heat(rows, columns=2)
    assert heat is not None
    assert list(heat.edges) == [0.0, 200.0, 300.0]
    assert heat.cells[1][0] == pytest.approx((1.0 * 1 + 4.0 * 3) / 4)
    assert math.isnan(heat.cells[1][1])
    assert heat.cells[9][1] == 2.0
    assert rate_heat([]) is None
    assert rate_heat([train_row(1, loss_by_mask_rate={}, tokens_by_mask_rate={})]) is None


def test_every_second_stage_is_shaded(tmp_path: Path) -> None:
    stages = [0, 0, 1, 1, 2, 3]
    rows = [train_row(step, stage=stage) for step, stage in enumerate(stages, start=1)]
    assert stage_bands(read_run(write_run(tmp_path / "run", rows))) == [(200.0, 400.0), (500.0, 600.0)]


def test_long_runs_are_smoothed_and_short_ones_are_not(tmp_path: Path) -> None:
    assert [smoothing_window(rows) for rows in (1, 79, 80, 400)] == [1, 1, 2, 10]
    found = figures(tmp_path, [train_row(step, loss=float(step % 2)) for step in range(1, 81)])
    chart = found["Training loss"].chart
    assert isinstance(chart, Chart)
    raw, mean = chart.lines[:2]
    assert raw.faint
    assert [value for _, value in raw.points[:3]] == [1.0, 0.0, 1.0]
    assert [value for _, value in mean.points[:3]] == [1.0, 0.5, 0.5]
    assert found["Training loss"].note == "Bold: mean of the last 2 rows."
