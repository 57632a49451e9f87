"""What the demo ends with: one table, three answers side by side, a picture, and the figures as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from demo.evaluate import LOSSLESS, Row, side_by_side
from difflm.plots import plot_training, read_rows


def perplexity_lines(folder: Path) -> list[str]:
    """Return the table of perplexities: the AR parent, the converted model before and after the text stage."""
    diffusion = _validations(folder / "text")
    control = _validations(folder / "text-ar")
    sizes = sorted(diffusion[0]["perplexity"], key=int)
    head = ["perplexity per token, held-out text", "AR", *(f"block {size}" for size in sizes)]
    parent = ["AR parent", _figure(control[0]["ar_perplexity"]), *("-" for _ in sizes)]
    before = ["converted, before training", *_perplexities(diffusion[0], sizes)]
    after = ["converted, after the text stage", *_perplexities(diffusion[-1], sizes)]
    tuned = ["AR control, after the text stage", _figure(control[-1]["ar_perplexity"]), *("-" for _ in sizes)]
    return table([head, parent, before, after, tuned])


def task_lines(rows: Sequence[Row]) -> list[str]:
    """Return the table of the task: a line per way of decoding and split."""
    head = ["sentence -> JSON", "items", "exact match (95 %)", "TPF", "tokens/s", "forwards (prefill+denoise+commit)"]
    lines = [head]
    for row in rows:
        low, high = row.interval
        lines.append(
            [
                f"{row.name}, {row.split}",
                str(row.count),
                f"{row.correct / row.count:.2f} ({low:.2f}-{high:.2f})",
                f"{row.tokens_per_forward:.2f}",
                f"{row.tokens_per_second:.1f}",
                f"{row.prefill}+{row.denoise}+{row.commit}",
            ]
        )
    return table(lines)


def goal_lines(rows: Sequence[Row]) -> list[str]:
    """Return each goal with what was reached; what was not is said so. The first row's way of decoding is judged."""
    main = {row.split: row for row in rows if row.name == rows[0].name}
    control = {row.split: row for row in rows if row.name == "AR control"}
    fresh, unseen = main["fresh"], main["unseen"]
    ratio = fresh.tokens_per_second / control["fresh"].tokens_per_second
    checks = [
        (
            f"exact match on fresh items {fresh.correct / fresh.count:.2f} (goal 0.95)",
            fresh.correct / fresh.count >= 0.95,
        ),
        (f"TPF with commits {fresh.tokens_per_forward:.2f} (goal 2.5)", fresh.tokens_per_forward >= 2.5),
        (
            f"exact match on unseen values {unseen.correct / unseen.count:.2f} (goal 0.6)",
            unseen.correct / unseen.count >= 0.6,
        ),
        (f"tokens/s over the AR control {ratio:.2f}x (goal above 1)", ratio > 1),
    ]
    named = [(text, met, fresh.name) for text, met in checks]
    named += [(text, met, LOSSLESS) for text, met in _lossless_goals(rows)]
    return [f"{'reached    ' if met else 'NOT REACHED'}  {text}  [{name}]" for text, met, name in named]


def _lossless_goals(rows: Sequence[Row]) -> list[tuple[str, bool]]:
    """Return the goals of the lossless form, if it is in the table: speed, and in float32 the same answers."""
    fresh = {row.name: row for row in rows if row.split == "fresh"}
    if LOSSLESS not in fresh:
        return []
    ratio = fresh[LOSSLESS].tokens_per_second / fresh["AR control"].tokens_per_second
    pairs = zip(fresh["AR control, float32"].answers, fresh[f"{LOSSLESS}, float32"].answers, strict=True)
    same = [alone == drafted for alone, drafted in pairs]
    return [
        (f"tokens/s over the AR control {ratio:.2f}x (goal 3)", ratio >= 3.0),
        (f"answers equal to the AR control's in float32 {sum(same)} of {len(same)} (goal all)", all(same)),
    ]


def answer_lines(rows: Sequence[Row], *, shown: int = 3) -> list[str]:
    """Return answers of the main way, one token per forward, the AR control and the lossless form, item by item."""
    names = (rows[0].name, "one token per forward", "AR control", LOSSLESS)
    chosen = [row for row in rows if row.name in names]
    lines = []
    for item, answers in side_by_side(chosen, "unseen", shown):
        lines += ["", item.prompt.split("\n")[0]]
        lines += [f"  {name:<30} {answer.strip()}" for name, answer in answers]
    return lines


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table with padded columns; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def write_picture(folder: Path) -> Path:
    """Draw both runs (text, then task) over their tokens, and return the PNG."""
    joined = folder / "metrics.jsonl"
    rows: list[dict[str, Any]] = []
    offset = 0
    for name in ("text", "task"):
        part = read_rows(folder / name / "metrics.jsonl")
        # The task's validation text is other text: its perplexities do not belong on the same axis.
        part = [row for row in part if row["kind"] == "train" or name == "text"]
        rows += [{**row, "num_tokens": row["num_tokens"] + offset} for row in part]
        offset = rows[-1]["num_tokens"]
    joined.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    picture = folder / "demo.png"
    plot_training(joined, picture)
    return picture


def figures(folder: Path, rows: Sequence[Row], facts: dict[str, Any]) -> dict[str, Any]:
    """Return everything that was measured, for `result.json`."""
    text, control = _validations(folder / "text"), _validations(folder / "text-ar")
    kept = [{key: value for key, value in asdict(row).items() if key != "answers"} for row in rows]
    for entry, row in zip(kept, rows, strict=True):
        entry |= {"tokens_per_forward": row.tokens_per_forward, "tokens_per_second": row.tokens_per_second}
    return {
        **facts,
        "perplexity": {"before": text[0], "after": text[-1], "ar_before": control[0], "ar_after": control[-1]},
        "task": kept,
    }


def _validations(run: Path) -> list[dict[str, Any]]:
    return [row for row in read_rows(run / "metrics.jsonl") if row["kind"] == "validation"]


def _perplexities(row: dict[str, Any], sizes: Sequence[str]) -> list[str]:
    return [_figure(row["ar_perplexity"]), *(_figure(row["perplexity"][size]) for size in sizes)]


def _figure(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"
