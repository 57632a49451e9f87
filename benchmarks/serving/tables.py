"""Rows of the measurement of speed -> Markdown tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.lossless.records import Row, table

ENGINE, SERVER = "engine", "difflm serve"
"""Names of our systems, before what they decode with."""


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest value that at least this share of the values does not exceed; None of none."""
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1] if values else None


def summary(rows: Sequence[Row]) -> str:
    """Return two tables: speed against the number of clients, and what HTTP adds to the engine.

    Medians are those of rounds, percentiles go over the answers of all rounds, ratios and differences are taken round
    by round.
    """
    speeds = [row for row in rows if row.get("kind") == "speed"]
    names = sorted(dict.fromkeys(row["system"] for row in speeds), key=_place)
    counts = sorted({row["clients"] for row in speeds})
    found = {
        (name, many): {row["round"]: row for row in speeds if (row["system"], row["clients"]) == (name, many)}
        for name in names
        for many in counts
    }
    lines = [_line(found, names, name, many) for many in counts for name in names if found[name, many]]
    head = ["clients", "system", "tokens/s", f"of {names[0]}" if names else "ratio", "tokens of an answer"]
    speed = table([*head, "latency p50 s", "p99", "first text p50 s", "p99"], lines)
    added = [
        [many, name, *over_http(found[ENGINE + name.removeprefix(SERVER), many], found[name, many])]
        for many in counts
        for name in names
        if name.startswith(SERVER) and ENGINE + name.removeprefix(SERVER) in names
    ]
    return f"{speed}\n\n{table(['clients', 'system', 'ms more than the engine', 'of its latency'], added)}"


def _place(name: str) -> int:
    """Return the place of a system: engine, server, peers; which is measured first differs from round to round."""
    return 0 if name.startswith(ENGINE) else 1 if name.startswith(SERVER) else 2


def _line(found: Mapping[tuple[str, int], Mapping[int, Row]], names: Sequence[str], name: str, many: int) -> list[Any]:
    """Return the cells of a system and a number of clients."""
    mine, first = found[name, many], found[names[0], many]
    ratios = [_rate(mine[each]) / _rate(first[each]) for each in mine if each in first and _rate(first[each]) > 0]
    return [
        many,
        name,
        statistics.median(map(_rate, mine.values())),
        statistics.median(ratios) if ratios else None,
        sum(row["tokens"] for row in mine.values()) / sum(row["answers"] for row in mine.values()),
        *(
            percentile([value for row in mine.values() for value in row[what]], share)
            for what in ("latency", "first")
            for share in (0.5, 0.99)
        ),
    ]


def _rate(row: Row) -> float:
    return row["tokens"] / row["seconds"]


def over_http(engine: Mapping[int, Row], server: Mapping[int, Row]) -> tuple[float | None, str | None]:
    """Return what a server adds to the latency of an answer, ms and percent: the median of rounds.

    Args:
        engine: its rows by round.
        server: those of the server.
    """
    pairs = [
        (statistics.fmean(engine[each]["latency"]), statistics.fmean(server[each]["latency"]))
        for each in engine
        if each in server
    ]
    if not pairs:
        return None, None
    share = statistics.median((there - here) / here for here, there in pairs)
    return statistics.median(1000 * (there - here) for here, there in pairs), f"{100 * share:+.1f} %"
