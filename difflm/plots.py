"""Pictures of a run: a PNG from its metrics.jsonl, charts as SVG for a page; needs no torch."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difflm.errors import ConfigError, DataError

INK, RULE = "#4a5160", "#d5d9e0"
# Seen on white and on black alike.
COLORS = ("#3578c4", "#e0801f", "#2f9d6a", "#c94f6d", "#8a6fd1", "#1f9fb0", "#a88b2d", "#7f8794")
_MOST_POINTS, _FEW_POINTS = 1200, 40


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve of a chart.

    Attributes:
        label: for the legend; "" leaves it out.
        points: (training tokens, value), in order; values that are not finite are left out.
        color: index into `COLORS`.
        faint: thin and pale, for values of single steps.
        dashed: for what is compared with.
        steps: holds each value until the next one.
        right: belongs to the axis on the right.
    """

    label: str
    points: Sequence[tuple[float, float]]
    color: int = 0
    faint: bool = False
    dashed: bool = False
    steps: bool = False
    right: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Curves over training tokens.

    Attributes:
        unit: of the values, on the left axis.
        lines: curves.
        right_unit: of the curves that belong to the right axis.
        log: base of the left axis, 2 or 10; 0 is linear. Base 10 stays linear where the values span less than 4 to 1.
        bands: (first, last) training tokens of stretches that are shaded.
        end: last training tokens of the axis, so that all charts of a run line up.
    """

    unit: str
    lines: Sequence[Line]
    right_unit: str = ""
    log: int = 0
    bands: Sequence[tuple[float, float]] = ()
    end: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """Values over training tokens and another quantity, as colours.

    Attributes:
        unit: of the values.
        edges: training tokens that bound the columns, one more than columns.
        cells: row -> column -> value; NaN where there is none.
        rows: what bounds the rows, one more than rows.
        rows_unit: of `rows`.
    """

    unit: str
    edges: Sequence[float]
    cells: Sequence[Sequence[float]]
    rows: Sequence[float]
    rows_unit: str


def draw_svg(chart: Chart | Heat, *, name: str) -> str:
    """Return a chart as one `<svg>` element to stand inside an HTML page.

    It has neither style attributes nor references to anything outside itself. Axes and text have the colours `INK` and
    `RULE`, which a style sheet may replace for a dark page: `[fill="#4a5160"] {fill: ...}`.

    Args:
        chart: what to draw.
        name: begins the ids in the element; another one for every chart of a page.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("report: matplotlib is not installed; pip install 'difflm[plot]'") from None
    settings: dict[Any, Any] = {
        "svg.hashsalt": "difflm",  # the same chart is the same text
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": RULE,
        "axes.axisbelow": True,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(5.4, 2.9), layout="constrained")
        if isinstance(chart, Heat):
            _draw_heat(figure, chart)
        else:
            _draw_chart(figure, chart)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), name)


def _draw_chart(figure: Any, chart: Chart) -> None:
    left = figure.subplots()
    for first, last in chart.bands:
        left.axvspan(first, last, color=RULE, alpha=0.35, linewidth=0)
    drawn = [(line, points) for line in chart.lines if (points := _thinned(_finite(line.points)))]
    right = left.twinx() if any(line.right for line, _ in drawn) else None
    for line, points in drawn:
        axes = right if line.right and right is not None else left
        axes.plot(
            *zip(*points, strict=True),
            label=line.label or "_",
            color=COLORS[line.color % len(COLORS)],
            alpha=0.35 if line.faint else 1.0,
            linewidth=0.7 if line.faint else 1.6,
            linestyle="--" if line.dashed else "-",
            drawstyle="steps-pre" if line.steps else "default",
            marker="o" if len(points) <= _FEW_POINTS else "",
            markersize=3,
            clip_on=len(points) > _FEW_POINTS,
        )
    _scale(left, chart.log, [value for line, points in drawn if not line.right for _, value in points])
    _finish(left, chart.unit, chart.end)
    left.grid(linewidth=0.6)
    left.spines[["top", "right"]].set_visible(False)
    if right is not None:
        right.set_ylabel(chart.right_unit)
        highest = max(value for line, points in drawn if line.right for _, value in points)
        right.set_ylim(0, 1.08 * highest or 1.0)
        right.yaxis.set_major_formatter("{x:g}")
        right.spines[["top"]].set_visible(False)
    named = sum(bool(line.label) for line, _ in drawn)
    if named > 1:
        figure.legend(loc="outside upper left", ncols=min(named, 4), frameon=False, fontsize=9)


def _scale(axes: Any, base: int, values: Sequence[float]) -> None:
    """Set the scale of the left axis, with labels at values that occur or at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    axes.yaxis.set_major_formatter("{x:,g}")
    if base == 2 and values:
        axes.set_yscale("log", base=2)
        axes.set_yticks(sorted(set(values)), labels=[f"{value:g}" for value in sorted(set(values))])
        axes.yaxis.set_minor_locator(NullLocator())
    elif base == 10 and values and min(values) > 0 and max(values) >= 4 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _finish(axes: Any, unit: str, end: float) -> None:
    from matplotlib.ticker import EngFormatter

    axes.set_ylabel(unit)
    axes.set_xlabel("training tokens")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if end > 0:
        axes.set_xlim(0, end)


def _draw_heat(figure: Any, heat: Heat) -> None:
    import matplotlib

    axes = figure.subplots()
    # Few colours: the scale is then drawn as shapes, not as a picture.
    colors = matplotlib.colormaps["viridis"].resampled(24)
    mesh = axes.pcolormesh(heat.edges, heat.rows, heat.cells, cmap=colors)
    bar = figure.colorbar(mesh, ax=axes, label=heat.unit)
    bar.outline.set_visible(False)
    axes.set_yticks(heat.rows[::2])
    _finish(axes, heat.rows_unit, heat.edges[-1])
    axes.yaxis.set_major_formatter("{x:g}")


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most `_MOST_POINTS` points: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= _MOST_POINTS:
        return points
    stretch = -(-2 * len(points) // _MOST_POINTS)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return kept


def _inline(svg: str, name: str) -> str:
    """Return an SVG file of matplotlib as an element of an HTML page whose policy allows no style attributes."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.S)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href=", "href=")
    svg = re.sub(r'^(<svg [^>]*?) width="[^"]*"', r"\1", svg)
    svg = re.sub(r'^(<svg [^>]*?) height="[^"]*"', r"\1", svg)
    svg = re.sub(r' style="([^"]*)"', _as_attributes, svg).strip()
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    return re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)


def _as_attributes(style: re.Match[str]) -> str:
    parts = (part.partition(":") for part in style.group(1).split(";") if part.strip())
    return "".join(f' {name.strip()}="{value.strip()}"' for name, _, value in parts)
