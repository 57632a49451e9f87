"""The figures of `difflm bench speed` as Markdown: tables, the goals, and the arithmetic of breaking even."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from difflm.bench.speed_systems import AR_SYSTEMS, BLOCK, ENGINE, LOOP

LOOP_GOALS = {256: 4.0, 1024: 10.0}
"""New tokens -> times as fast as the released loop."""
BATCH_GOAL = 0.8
OVERHEAD_GOAL = 0.1


def speed_markdown(result: Mapping[str, Any]) -> str:
    """Return the report of `bench_speed`; cases that were not measured are left out."""
    cases: Mapping[str, Any] = result["cases"]
    machine, settings = result["environment"], result["settings"]
    lines = [
        f"# Speed of decoding: {settings['model'].rpartition('/')[2]}",
        "",
        f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}, transformers "
        f"{machine['transformers']}, commit {machine['commit']}. Blocks of {BLOCK}, prompt of {settings['prompt']} "
        f"random tokens, forced schedules (S denoising forwards per block), so the numbers of the model do not matter. "
        f"Systems of a table took turns; medians of {settings['repeats']} repeats, ratios paired by repeat.",
        "",
        *(f"Left out: {reason}." for reason in cases.get("left out", {}).values()),
    ]
    for section in (_forwards, _trials, _schedules, _loops, _batches, _profiles):
        lines += section(cases, settings)
    return "\n".join(lines).rstrip() + "\n"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table, numbers to the right, with an empty line behind it."""
    rule = ["---", *("---:" for _ in headings[1:])]
    return [f"| {' | '.join(each)} |" for each in (headings, rule, *rows)] + [""]


def _forwards(cases: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for name, figures in cases.items():
        if not name.startswith("forward, "):
            continue
        precisions = list(figures)
        rows = [
            [
                str(count),
                *(_beside_first(figures[each], str(count)) for each in precisions),
            ]
            for count in settings["rows"]
        ]
        lines += [f"## One forward, {name.removeprefix('forward, ')}: ms (over one row)", ""]
        lines += markdown_table(["rows", *precisions], rows)
    if lines:
        lines += [
            f"{BLOCK} rows over 1 is what a block's forward costs in next-token forwards: with S denoising forwards "
            f"per block no gain over the same precision's next-token decoding is larger than {BLOCK} / S over it.",
            "",
        ]
    return lines


def _beside_first(figures: Mapping[str, float], key: str) -> str:
    return f"{figures[key]:.1f} ({figures[key] / next(iter(figures.values())):.2f})"


def _trials(cases: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    if "trials" not in cases:
        return []
    best, left_out = cases["trials"]["best"], cases["trials"]["left_out"]
    rows = [
        [name, each["precision"], str(each["threads"]), f"{each['tokens_per_second']:.1f}"]
        for name, each in best.items()
    ]
    lines = ["## Best precision and threads of each system, by a short trial", ""]
    lines += markdown_table(["system", "precision", "threads", "tokens/s"], rows)
    version = cases["trials"]["llama_cpp"]
    if version:
        lines += [f"llama.cpp by llama-cpp-python {version}, on the file's own quantisation.", ""]
    return lines + [f"Not measured: {name}: {reason}." for name, reason in left_out.items()] + [""] * bool(left_out)


def _schedules(cases: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for name, figures in cases.items():
        if not name.startswith("schedules, "):
            continue
        systems = figures["systems"]
        baselines = [each for each in AR_SYSTEMS if each in systems]
        blocks = [(count, systems[f"S={count}"]) for count in settings["schedules"]]
        rows = [
            [
                f"S = {count}",
                f"{BLOCK / count:.0f}",
                str(each["forwards"]),
                f"{rate(each):.1f}",
                *(f"{_ratio(each, systems[other]):.2f}" for other in baselines),
            ]
            for count, each in blocks
        ]
        rows += [[other, "1", "", f"{rate(systems[other]):.1f}", *[""] * len(baselines)] for other in baselines]
        lines += [f"## Forced schedules, {name.removeprefix('schedules, ')}, {figures['threads']} threads", ""]
        lines += markdown_table(["", "TPF", "forwards", "tokens/s", *(f"x {each}" for each in baselines)], rows)
        fixed, each = fitted([(count, BLOCK / rate(figures)) for count, figures in blocks])
        lines += [f"A block takes {1000 * fixed:.0f} ms + {1000 * each:.1f} ms x S (least squares).", ""]
        for other in baselines:
            lines.append(f"- {other}: {_break_even(fixed, each, rate(systems[other]))}")
        lines.append("")
    return lines


def _break_even(fixed: float, each: float, baseline: float) -> str:
    """Return the sentence that says from which TPF blocks are faster than a baseline, with the arithmetic."""
    budget = BLOCK / baseline
    count = (budget - fixed) / each
    whole, start, slope = 1000 * budget, 1000 * fixed, 1000 * each
    found = f"{BLOCK} tokens take {whole:.0f} ms; S = ({whole:.0f} - {start:.0f}) / {slope:.1f} = {count:.1f}"
    if count < 1:
        return f"{found} < 1: a block in one forward is still slower."
    if count >= BLOCK:
        return f"{found}: blocks are faster at every TPF from 1 on."
    return f"{found}: blocks are faster **from TPF {BLOCK / count:.1f}** on."


def fitted(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return (a, b) of y = a + b x by least squares on relative errors, a at least 0.

    Args:
        points: (x, y), two or more.
    """
    weights = [1.0 / y**2 for _, y in points]
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
    mean_y = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / total
    square = sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    mixed = sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, points, strict=True))
    slope = mixed / square
    if mean_y - slope * mean_x >= 0:
        return mean_y - slope * mean_x, slope
    through = sum(w * x * y for w, (x, y) in zip(weights, points, strict=True))
    return 0.0, through / sum(w * x * x for w, (x, _) in zip(weights, points, strict=True))


def rate(figures: Mapping[str, Any]) -> float:
    """Return tokens per second, the median over the repeats."""
    return figures["tokens"] / statistics.median(figures["seconds"])


def _ratio(mine: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Return how many times as fast `mine` is; the median of the paired ratios."""
    scale = mine["tokens"] / other["tokens"]
    pairs = zip(mine["seconds"], other["seconds"], strict=True)
    return statistics.median(scale * theirs / ours for ours, theirs in pairs)


def _loops(cases: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    rows: list[list[str]] = []
    for length in settings["lengths"]:
        figures = cases.get(f"loop, {length} tokens")
        if figures is None:
            continue
        loop, same, best = (figures[each] for each in (LOOP, f"{ENGINE}, set as the loop", ENGINE))
        ratio = _ratio(same, loop)
        goal = LOOP_GOALS.get(length)
        rows.append(
            [
                str(length),
                f"{loop['precision']}, {loop['threads']}",
                f"{rate(loop):.2f}",
                f"{rate(same):.1f}",
                f"{ratio:.1f}",
                "" if goal is None else f">= {goal:.0f}: {'met' if ratio >= goal else 'missed'}",
                f"{_ratio(best, loop):.1f}",
                str(len(loop["seconds"])),
            ]
        )
    if not rows:
        return []
    headings = [
        "new tokens", "precision, threads", "loop, tokens/s", "engine, tokens/s", "engine / loop", "goal",
        "engine at its best / loop", "repeats",
    ]  # fmt: skip
    return [
        f"## Against the released loop (whole prefix in every forward, no cache), S = {settings['forwards']}",
        "",
        *markdown_table(headings, rows),
    ]


def _batches(cases: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    rows: list[list[str]] = []
    first: float | None = None
    for count in settings["batches"]:
        figures = cases.get(f"batch, {count} requests")
        if figures is None:
            continue
        speed = rate(figures)
        first = first or speed / count
        allowed = figures["bare_seconds"]
        share = statistics.median(bare / whole for bare, whole in zip(allowed, figures["seconds"], strict=True))
        rows.append(
            [
                str(count),
                f"{speed:.1f}",
                f"{speed / (first * settings['batches'][0]):.2f}",
                f"{figures['tokens'] / statistics.median(allowed):.1f}",
                f"{share:.0%}",
                f">= {BATCH_GOAL:.0%}: {'met' if share >= BATCH_GOAL else 'missed'}",
            ]
        )
    if not rows:
        return []
    headings = ["requests", "tokens/s", "x first", "bare forwards allow, tokens/s", "share", "goal"]
    return [
        f"## Requests together, {2 * BLOCK} new tokens each, S = {settings['forwards']}",
        "",
        *markdown_table(headings, rows),
        "Bare forwards: the model and the head on as many rows as the engine needs, behind caches as long, and nothing "
        "else: no sampling, no scheduling.",
        "",
    ]


def _profiles(cases: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for name, figures in cases.items():
        if not name.startswith("profile, "):
            continue
        overhead, calls = figures["engine_over_model"], figures["operators_per_forward"]
        share = calls * figures["empty_operator_us"] * 1e-6 / (figures["seconds"] / figures["forwards"])
        precision = name.removeprefix("profile, ")
        lines += [
            f"## Where the time goes: {precision}, one request, one thread, S = {settings['forwards']}",
            "",
            f"Engine outside model and head: {overhead:.1%} of the time in them (goal: < {OVERHEAD_GOAL:.0%}, "
            f"{'met' if overhead < OVERHEAD_GOAL else 'missed'}). {calls:.0f} operators per forward at "
            f"{figures['empty_operator_us']:.1f} us for an empty one: {share:.0%} of a forward is calling them.",
            "",
            *markdown_table(
                ["operator", "calls", "share"],
                [[f"`{each['name']}`", str(each["calls"]), f"{each['share']:.1%}"] for each in figures["operators"]],
            ),
        ]
    return lines
