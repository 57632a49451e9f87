"""Pictures of a run, from its metrics.jsonl; needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from difflm.errors import ConfigError, DataError


def read_rows(metrics: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl; a last line that an interruption cut short is left out.

    Raises:
        DataError: the file cannot be read, or a line before the last is not JSON.
    """
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{metrics}: cannot be read; give the metrics.jsonl of a run folder") from None
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise DataError(f"{metrics}:{number}: not JSON; the file is damaged before its last line") from None
    return rows


def smoothed(values: list[float], *, window: int) -> list[float]:
    """Return the mean of each value and up to `window` - 1 values before it."""
    means, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        means.append(total / min(index + 1, window))
    return means


def plot_training(metrics_jsonl: Path, png: Path) -> None:
    """Draw loss, validation perplexities and block size over tokens.

    Args:
        metrics_jsonl: rows of kind "train" (num_tokens, loss, block_size) and "validation" (num_tokens, perplexity by
            block size, ar_perplexity).
        png: file to write.

    Raises:
        ConfigError: matplotlib is not installed.
        DataError: the file cannot be read or holds no training row.
    """
    rows = read_rows(metrics_jsonl)
    train = [row for row in rows if row.get("kind") == "train"]
    if not train:
        raise DataError(f"{metrics_jsonl}: no row of kind 'train'; the run has not done a step yet")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plot: matplotlib is not installed; pip install 'difflm[plot]'") from None
    figure = Figure(figsize=(9, 7), layout="constrained")
    loss_axes, perplexity_axes, block_axes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))
    _draw_loss(loss_axes, train)
    _draw_perplexities(perplexity_axes, [row for row in rows if row.get("kind") == "validation"])
    _draw_block_size(block_axes, train)
    for axes in (loss_axes, perplexity_axes, block_axes):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(png, dpi=130)


def _draw_loss(axes: Any, train: list[dict[str, Any]]) -> None:
    tokens = [row["num_tokens"] for row in train]
    losses = [float(row["loss"]) for row in train]
    window = max(1, len(losses) // 40)
    axes.plot(tokens, losses, color="tab:blue", alpha=0.25, linewidth=0.8, label="each step")
    axes.plot(tokens, smoothed(losses, window=window), color="tab:blue", label=f"mean of the last {window}")
    axes.set_ylabel("training loss (nats per token)")
    axes.legend(frameon=False)


def _draw_perplexities(axes: Any, validation: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    series: dict[str, list[tuple[int, float]]] = {}
    for row in validation:
        named = {f"block {size}": value for size, value in (row.get("perplexity") or {}).items()}
        if row.get("ar_perplexity") is not None:
            named["autoregressive"] = row["ar_perplexity"]
        for name, value in named.items():
            series.setdefault(name, []).append((row["num_tokens"], value))
    for name, points in series.items():
        style = {"color": "black", "linestyle": "--"} if name == "autoregressive" else {}
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name, **style)
    axes.set_ylabel("validation perplexity")
    if series:
        axes.set_yscale("log")
        # Labels at 1, 2 and 5 of each decade: readable within one decade and over three.
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.legend(frameon=False, ncols=2)


def _draw_block_size(axes: Any, train: list[dict[str, Any]]) -> None:
    points = [(row["num_tokens"], row["block_size"]) for row in train if row.get("block_size")]
    axes.set_ylabel("block size (tokens)")
    axes.set_xlabel("training tokens")
    if points:
        axes.step(*zip(*points, strict=True), where="pre", color="tab:orange")
        axes.set_yscale("log", base=2)
        sizes = sorted({size for _, size in points})
        axes.set_yticks(sizes, labels=[str(size) for size in sizes], minor=False)
