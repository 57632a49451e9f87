"""Which curves a report draws, from the rows of metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from difflm.plots import Chart, Heat, Line, smoothed
from difflm.reporting.facts import Row, RunFacts, number
from difflm.training.tally import RATE_BUCKETS, bucket_name

_COLUMNS = 48  # of the heat map
GIB = 2**30
AR = 7  # color of what is compared with


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A chart with its words.

    Attributes:
        title: heading.
        note: a sentence on how to read it; may be empty.
        chart: what is drawn.
    """

    title: str
    note: str
    chart: Chart | Heat


def figures_of(run: RunFacts) -> list[Figure]:
    """Return the charts of a run that has something to show in them, in the order of the page."""
    bands = stage_bands(run)
    end = float(max((row["num_tokens"] for row in (*run.train, *run.validation)), default=0))

    def chart(unit: str, lines: Sequence[Line], *, right_unit: str = "", log: int = 0) -> Chart:
        return Chart(unit=unit, lines=lines, right_unit=right_unit, log=log, bands=bands, end=end)

    window = smoothing_window(len(run.train))
    mean = f"Bold: mean of the last {window} rows." if window > 1 else ""
    found = [
        Figure(title="Training loss", note=mean, chart=chart("nats per token", _loss_lines(run.train))),
        Figure(title="Validation perplexity", note="", chart=chart("perplexity", _perplexity_lines(run), log=10)),
        Figure(
            title="Block size",
            note="Stages of the curriculum." if len(run.config.curriculum) > 1 else "",
            chart=chart("tokens", [_line(run.train, "block_size", color=1, steps=True)], log=2),
        ),
        Figure(
            title="Gradient norm and learning rate",
            note="Norm before clipping.",
            chart=chart(
                "gradient norm",
                [
                    *_both(run.train, "grad_norm", label="gradient norm", color=2),
                    _line(run.train, "learning_rate", label="learning rate", color=3, right=True),
                ],
                right_unit="learning rate",
                log=10,
            ),
        ),
        Figure(
            title="Masked accuracy and mask ratio",
            note="Accuracy: arg-max hits among masked tokens. Ratio: masked among those that could be.",
            chart=chart(
                "share",
                [
                    *_both(run.train, "masked_accuracy", label="masked accuracy", color=4),
                    *_both(run.train, "mask_ratio", label="mask ratio", color=6),
                ],
            ),
        ),
        *_router_figures(run, chart),
        *_speed_figures(run, chart),
    ]
    shown = [each for each in found if isinstance(each.chart, Chart) and any(line.points for line in each.chart.lines)]
    heat = rate_heat(run.train)
    if heat is not None:
        note = "Unweighted loss of masked tokens, by the share of masked tokens in their block."
        shown.insert(min(5, len(shown)), Figure(title="Loss by mask rate", note=note, chart=heat))
    return shown


def _router_figures(run: RunFacts, chart: Callable[..., Chart]) -> list[Figure]:
    """Return how evenly the routers of a mixture of experts load them; without points for a dense model."""
    lines = [
        line
        for color, stream in enumerate(("noisy", "clean"))
        for line in (
            *_both(run.train, "router", stream, "max_violation", "mean", label=f"{stream}: overload", color=color),
            _line(
                run.train, "router", stream, "dead_experts", "mean",
                label=f"{stream}: dead experts", color=color + 2, right=True,
            ),
        )
    ]  # fmt: skip
    note = "Overload: busiest expert / mean - 1, mean of the layers. Dead: share of experts without a token in a step."
    return [Figure(title="Load of the experts", note=note, chart=chart("overload", lines, right_unit="share"))]


def _speed_figures(run: RunFacts, chart: Callable[..., Chart]) -> list[Figure]:
    """Return what training and decoding cost."""
    return [
        Figure(
            title="Throughput and memory",
            note="Memory: most in use so far.",
            chart=chart(
                "tokens/s",
                [
                    *_both(run.train, "tokens_per_second", label="tokens/s", color=5),
                    _line(run.train, "memory_bytes", label="memory", color=3, right=True, scale=1 / GIB),
                ],
                right_unit="GiB",
            ),
        ),
        Figure(
            title="Tokens per forward",
            note="Of the run's own samples: all tokens over all forwards of decoding.",
            chart=chart("TPF", [_line(run.sampled, "tokens_per_forward", color=0)]),
        ),
    ]


def smoothing_window(rows: int) -> int:
    """Return over how many rows curves are averaged."""
    return max(1, rows // 40)


def stage_bands(run: RunFacts) -> list[tuple[float, float]]:
    """Return (first, last) training tokens of every second stage of the curriculum, as far as the run got."""
    spans: dict[int, tuple[float, float]] = {}
    before = 0.0
    for row in run.train:
        stage = number(row, "stage")
        if stage is not None:
            first, _ = spans.get(int(stage), (before, before))
            spans[int(stage)] = (first, float(row["num_tokens"]))
        before = float(row["num_tokens"])
    return [span for stage, span in sorted(spans.items()) if stage % 2]


def rate_heat(train: Sequence[Row], *, columns: int = _COLUMNS) -> Heat | None:
    """Return the loss by mask rate over tokens; None without masks.

    A cell is the sum of nats over the count of masked tokens of its rows, never a mean of means.

    Args:
        train: rows of kind "train".
        columns: at most, of equal numbers of rows.
    """
    rows = [row for row in train if isinstance(row.get("loss_by_mask_rate"), dict)]
    if not rows:
        return None
    width = math.ceil(len(rows) / columns)
    parts = [rows[start : start + width] for start in range(0, len(rows), width)]
    edges = [0.0, *(float(part[-1]["num_tokens"]) for part in parts)]
    cells = [[_pooled(part, bucket_name(bucket)) for part in parts] for bucket in range(RATE_BUCKETS)]
    if all(math.isnan(value) for row in cells for value in row):
        return None
    bounds = [bucket / RATE_BUCKETS for bucket in range(RATE_BUCKETS + 1)]
    return Heat(unit="nats per masked token", edges=edges, cells=cells, rows=bounds, rows_unit="mask rate of the block")


def _pooled(rows: Sequence[Row], bucket: str) -> float:
    total = count = 0.0
    for row in rows:
        mean, tokens = number(row, "loss_by_mask_rate", bucket), number(row, "tokens_by_mask_rate", bucket)
        if mean is not None and tokens is not None:
            total += mean * tokens
            count += tokens
    return total / count if count else math.nan


def _loss_lines(train: Sequence[Row]) -> list[Line]:
    terms = {name: None for row in train if isinstance(row.get("loss_by_term"), dict) for name in row["loss_by_term"]}
    lines = _both(train, "loss", label="loss", color=0)
    if len(terms) > 1:
        for index, name in enumerate(terms):
            raw, *mean = _both(train, "loss_by_term", name, label=f"term {name}", color=1 + index)
            lines += mean or [raw]
    return lines


def _perplexity_lines(run: RunFacts) -> list[Line]:
    sizes = {size for row in run.validation if isinstance(row.get("perplexity"), dict) for size in row["perplexity"]}
    lines = [
        _line(run.validation, "perplexity", size, label=f"block {size}", color=index)
        for index, size in enumerate(sorted(sizes, key=lambda size: (len(size), size)))
    ]
    return [*lines, _line(run.validation, "ar_perplexity", label="AR", color=AR, dashed=True)]


def _both(rows: Sequence[Row], *names: str, label: str, color: int) -> list[Line]:
    """Return the curve of every row, pale, and its running mean; just the curve where that is the same."""
    raw = _line(rows, *names, label=label, color=color)
    window = smoothing_window(len(raw.points))
    if window == 1:
        return [raw]
    tokens = [place for place, _ in raw.points]
    means = smoothed([value for _, value in raw.points], window=window)
    return [
        Line(label="", points=raw.points, color=color, faint=True),
        Line(label=label, points=list(zip(tokens, means, strict=True)), color=color),
    ]


def _line(
    rows: Sequence[Row],
    *names: str,
    label: str = "",
    color: int = 0,
    dashed: bool = False,
    steps: bool = False,
    right: bool = False,
    scale: float = 1.0,
) -> Line:
    points = [(float(row["num_tokens"]), scale * value) for row in rows if (value := number(row, *names)) is not None]
    return Line(label=label, points=points, color=color, dashed=dashed, steps=steps, right=right)
