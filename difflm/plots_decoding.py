"""Pictures of decoding: in which order a request was decided, and what a sweep found; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from difflm.errors import ConfigError
from difflm.plots import COLORS

NARROW = 32  # positions in a line where a block is one position


def plot_steps(
    png: Path,
    *,
    block_size: int,
    steps: Sequence[int],
    confidences: Sequence[float | None],
    edits: Sequence[int],
    title: str,
) -> None:
    """Draw when each position was decided and how surely, a line for each block.

    Prompt and undecided positions are left blank; a dot marks a position that was edited.

    Args:
        png: file to write.
        block_size: positions in a line; 1 puts 32 in one.
        steps: forward of its block that decided each position, from 1; 0 for none.
        confidences: of each position, None where nothing was written.
        edits: how often each position was replaced.
        title: above the picture.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    width = block_size if block_size > 1 else NARROW
    lines = -(-len(steps) // width)
    figure = new_figure((9, 1.6 + 0.22 * lines))
    left, right = figure.subplots(1, 2, sharey=True)
    order = [math.nan if step == 0 else float(step) for step in steps]
    sure = [math.nan if value is None or step == 0 else value for value, step in zip(confidences, steps, strict=True)]
    for axes, values, label, limits in (
        (left, order, "forward of the block", None),
        (right, sure, "confidence", (0, 1)),
    ):
        cells = [[*values[start : start + width]] for start in range(0, len(values), width)]
        cells[-1] += [math.nan] * (width - len(cells[-1]))
        low, high = limits or (1, max([step for step in steps if step], default=1) + 1e-9)
        shown = axes.imshow(cells, cmap="viridis", aspect="auto", vmin=low, vmax=high, interpolation="nearest")
        figure.colorbar(shown, ax=axes, label=label, shrink=0.9)
        marked = [divmod(place, width) for place, count in enumerate(edits) if count]
        axes.scatter([column for _, column in marked], [line for line, _ in marked], s=9, color="#c94f6d")
        axes.set_xlabel("position in the block" if block_size > 1 else "position in the line")
    left.set_ylabel("block" if block_size > 1 else f"line of {width} positions")
    left.yaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title, fontsize=9)
    figure.savefig(png, dpi=130)


def plot_sweep(png: Path, points: Sequence[Mapping[str, Any]], parent: Mapping[str, Any] | None = None) -> None:
    """Draw score over tokens per forward and tokens per second over the threshold, the AR parent as a line.

    Points that no other one beats have a ring; bars are 95 % intervals; band and lines across are the parent's.

    Args:
        png: file to write.
        points: rows of a sweep: "policy", "block_size", "threshold", "score", "low", "high", "tpf", "tps", "pareto".
        parent: the row of the AR parent.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure = new_figure((11, 4.6))
    left, right = figure.subplots(1, 2)
    series: dict[tuple[str, Any], list[Mapping[str, Any]]] = {}
    for point in points:
        series.setdefault((point["policy"].partition(":")[0], point["block_size"]), []).append(point)
    for number, ((name, size), rows) in enumerate(series.items()):
        color, label = COLORS[number % len(COLORS)], f"{name}, block {'of the model' if size is None else size}"
        rows = sorted(rows, key=lambda row: row["tpf"])
        bars = [[row["score"] - row["low"] for row in rows], [row["high"] - row["score"] for row in rows]]
        places = [row["tpf"] for row in rows], [row["score"] for row in rows]
        left.errorbar(*places, yerr=bars, marker="o", markersize=4, capsize=2, color=color, label=label)
        swept = sorted((row["threshold"], row["tps"]) for row in rows if row["threshold"] is not None)
        if swept:
            right.plot(*zip(*swept, strict=True), marker="o", markersize=4, color=color, label=label)
    best = [point for point in points if point["pareto"]]
    ring = {"s": 90, "facecolors": "none", "edgecolors": "black", "linewidths": 0.8}
    left.scatter([point["tpf"] for point in best], [point["score"] for point in best], **ring)
    if parent is not None:
        dashed = {"color": "black", "linestyle": "--", "linewidth": 1}
        left.axhline(parent["score"], label="AR parent", **dashed)
        left.axhspan(parent["low"], parent["high"], color="black", alpha=0.07, linewidth=0)
        right.axhline(parent["tps"], label="AR parent", **dashed)
    left.set(xlabel="tokens per forward", ylabel="score")
    right.set(xlabel="threshold", ylabel="tokens per second", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(png, dpi=130)


def new_figure(size: tuple[float, float]) -> Any:
    """Return an empty figure.

    Args:
        size: width and height, inches.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plot: matplotlib is not installed; pip install 'difflm[plot]'") from None
    return Figure(figsize=size, layout="constrained")
