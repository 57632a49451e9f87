"""The study's targets, held against its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from difflm.evaluation.intervals import bootstrap
from study.results import Results

CONFIRMED, REFUTED, OPEN, ABSENT = "confirmed", "refuted", "not decided by so few items", "not measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A target and what became of it.

    Attributes:
        target: what was to be shown.
        measured: the figures.
        verdict: "confirmed", "refuted", "not measured", or that the interval holds both.
    """

    target: str
    measured: str
    verdict: str


def verdicts(results: Results) -> list[Verdict]:
    """Return every target of the study; what was not measured is said so."""
    return [
        _cap(results),
        _within(results, "SFT within 2 points of the AR control", "ar-sft", "sft", most=2.0),
        _fast(results, "1.5x the fastest AR's tokens/s without CAP", "sft", least=1.5),
        _fast(results, "2.1x the fastest AR's tokens/s with CAP", "cap", least=2.1),
        _fast(results, "the lossless adapter is faster than the fastest AR", "lossless", least=1.0),
        _equal(results),
        _better(results, "complementary pairs help", "sft-single", "sft"),
        _better(results, "preferences help", "cap" if results.of("score", stage="cap") else "sft", "dpo"),
    ]


def at_default(results: Results, stage: str) -> list[dict[str, Any]]:
    """Return the lines of a stage at its highest threshold, a line for each task."""
    rows = results.of("score", stage=stage)
    highest = max((row["threshold"] or 0.0 for row in rows), default=0.0)
    return [row for row in rows if (row["threshold"] or 0.0) == highest]


def difference(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """Return by how many points the second is righter, and the 95 % interval, paired by item.

    Args:
        first: lines of a stage, one for each task.
        second: those of another stage, on the same items.
    """
    marks = {row["task"]: row["marks"] for row in first}
    deltas = [
        100.0 * (int(mine) - int(other))
        for row in second
        for mine, other in zip(row["marks"], marks[row["task"]], strict=True)
    ]
    low, high = bootstrap(deltas)
    return sum(deltas) / len(deltas), low, high


def tokens_per_forward(rows: Sequence[dict[str, Any]]) -> float:
    """Return the TPF of all tasks together."""
    return sum(row["num_tokens"] for row in rows) / max(sum(row["denoise"] + row["commit"] for row in rows), 1)


def _both(results: Results, first: str, second: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]] | None:
    """Return the lines of the tasks that both stages were scored on; None without one."""
    rows = at_default(results, first), at_default(results, second)
    shared = {row["task"] for row in rows[0]} & {row["task"] for row in rows[1]}
    kept = [[row for row in each if row["task"] in shared] for each in rows]
    return (kept[0], kept[1]) if shared else None


def _cap(results: Results) -> Verdict:
    target = "CAP: 1.46x the TPF for at most 1.7 points"
    rows = _both(results, "sft", "cap")
    if rows is None:
        return Verdict(target=target, measured="-", verdict=ABSENT)
    ratio = tokens_per_forward(rows[1]) / tokens_per_forward(rows[0])
    delta, low, high = difference(*rows)
    measured = f"{ratio:.2f}x, {delta:+.1f} points ({low:+.1f} to {high:+.1f})"
    verdict = REFUTED if ratio < 1.46 else _decided(low, high, -1.7)
    return Verdict(target=target, measured=measured, verdict=verdict)


def _decided(low: float, high: float, least: float) -> str:
    """Return whether a difference is at least so many points: by its whole interval, else open."""
    return CONFIRMED if low >= least else REFUTED if high < least else OPEN


def _within(results: Results, target: str, control: str, stage: str, *, most: float) -> Verdict:
    rows = _both(results, control, stage)
    if rows is None:
        return Verdict(target=target, measured="-", verdict=ABSENT)
    delta, low, high = difference(*rows)
    return Verdict(
        target=target, measured=f"{delta:+.1f} points ({low:+.1f} to {high:+.1f})", verdict=_decided(low, high, -most)
    )


def _better(results: Results, target: str, without: str, stage: str) -> Verdict:
    rows = _both(results, without, stage)
    if rows is None:
        return Verdict(target=target, measured="-", verdict=ABSENT)
    delta, low, high = difference(*rows)
    verdict = CONFIRMED if low > 0 else REFUTED if high < 0 else OPEN
    return Verdict(
        target=target,
        measured=f"{delta:+.1f} points ({low:+.1f} to {high:+.1f}) over `{without}`, TPF "
        f"{tokens_per_forward(rows[1]):.2f} against {tokens_per_forward(rows[0]):.2f}",
        verdict=verdict,
    )


def _fast(results: Results, target: str, stage: str, *, least: float) -> Verdict:
    rows = results.of("speed", stage=stage)
    if not rows:
        return Verdict(target=target, measured="-", verdict=ABSENT)
    best = max(rows, key=lambda row: row["ratio"])
    measured = f"{best['ratio']:.2f}x ({best['ratio_low']:.2f}-{best['ratio_high']:.2f}), {best['task']}"
    return Verdict(target=target, measured=measured, verdict=CONFIRMED if best["ratio"] >= least else REFUTED)


def _equal(results: Results) -> Verdict:
    target = "lossless: the answers of the AR control, in float32"
    rows = results.of("equal")
    if not rows:
        return Verdict(target=target, measured="-", verdict=ABSENT)
    same, items = rows[0]["same"], rows[0]["items"]
    return Verdict(target=target, measured=f"{same} of {items} equal", verdict=CONFIRMED if same == items else REFUTED)
