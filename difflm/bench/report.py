"""How a benchmark is printed: a table for people, then one JSON document as the last line for programs."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO

from difflm.bench.systems import VERIFIED
from difflm.decode.policies.verified import EXACT

if TYPE_CHECKING:
    from difflm.bench.decode import DecodeBench, Row
    from difflm.bench.train import TrainBench


def table(headings: tuple[str, ...], rows: list[tuple[str, ...]], *, left: tuple[int, ...] = (0,)) -> str:
    """Return an aligned plain-text table.

    Args:
        headings: of the columns.
        rows: cells.
        left: columns that are aligned to the left; the others to the right.
    """
    widths = [max(len(line[i]) for line in [headings, *rows]) for i in range(len(headings))]
    lines = [
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in [headings, tuple("-" * w for w in widths), *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def report(result: DecodeBench, *, file: TextIO | None = None) -> None:
    """Print the table of a benchmark and, as the last line, the whole result as JSON.

    Args:
        result: of `bench_decode`.
        file: where to write; None is stdout.
    """
    out = file or sys.stdout
    best = (result.baseline, result.baseline_dtype)
    both = any(row.setting.system == VERIFIED for row in result.rows)
    rows = [
        (
            row.setting.system + (" (baseline)" if (row.setting.system, row.setting.dtype) == best else ""),
            row.setting.dtype,
            str(row.setting.threads),
            str(row.tokens),
            f"{row.prefill}+{row.denoise}+{row.commit}",
            f"{row.tokens_per_forward:.2f}",
            f"{row.tokens_per_second:.1f}",
            f"{row.ratio:.2f}",
            f"{row.ratio_range[0]:.2f}-{row.ratio_range[1]:.2f}",
            *(["-" if row.same_dtype_ratio is None else f"{row.same_dtype_ratio:.2f}"] if both else []),
        )
        for row in result.rows
    ]
    headings = (
        "system", "dtype", "threads", "tokens", "prefill+denoise+commit", "tokens/forward", "tokens/s", "ratio",
        "range", *(["same dtype"] if both else []),
    )  # fmt: skip
    machine = result.environment
    print(f"{result.converted} against {result.parent}", file=out)
    print(
        f"{result.prompts} prompts of {result.prompt_tokens} tokens, up to {result.params.max_new_tokens} new tokens "
        f"each, {result.repeats} interleaved repeats (medians); {machine['processor']}, {machine['cores']} cores, "
        f"torch {machine['torch']}, transformers {machine['transformers']}, commit {machine['commit']}",
        file=out,
    )
    print(table(headings, rows), file=out)
    for row in result.rows:
        if row.equal is not None:
            print(drafts_line(row, result.prompts), file=out)
    print(f"both AR systems gave the same answer to {result.same_ar_answers} of {result.prompts} prompts", file=out)
    print(json.dumps({"benchmark": "decode", **asdict(result)}), file=out, flush=True)


def drafts_line(row: Row, prompts: int) -> str:
    """Return whether the answers of a system that verifies are those of its weights left to right, and its drafts.

    Args:
        row: of the system.
        prompts: how many it answered.
    """
    assert row.equal is not None, "a system that verifies"
    line = f"verified, {row.setting.dtype}: {round(row.equal * prompts)} of {prompts} answers equal to next_token's"
    if row.equal < 1.0:
        exact = row.setting.dtype in EXACT
        line += " (promised: all but for ties within rounding)" if exact else " (near-ties; not promised in this dtype)"
    if row.drafts is None:
        return f"{line}; nothing was drafted"
    drafts = row.drafts
    places = " ".join(f"{share:.2f}" for share in drafts.acceptance_at)
    return (
        f"{line}; {drafts.accepted} of {drafts.drafted} drafts accepted in {drafts.cycles} cycles of "
        f"{drafts.tokens_per_cycle:.2f} tokens, share accepted by place: {places}"
    )


def report_training(result: TrainBench, *, file: TextIO | None = None) -> None:
    """Print the table of a training benchmark and, as the last line, the whole result as JSON.

    Args:
        result: of `bench_train`.
        file: where to write; None is stdout.
    """
    out = file or sys.stdout
    rows = [
        (
            row.attention,
            str(row.length),
            f"{row.seconds:.3f}",
            f"{row.tokens_per_second:.1f}",
            f"{row.ratio:.2f}",
            f"{row.ratio_range[0]:.2f}-{row.ratio_range[1]:.2f}",
            "-" if math.isnan(row.peak_mib) else f"{row.peak_mib:.0f}",
        )
        for row in result.rows
    ]
    asked, machine = result.settings, result.environment
    threads = f", {asked.threads or machine['cores']} threads" if asked.device == "cpu" else ""
    checkpointed = ", activation checkpointing" if asked.activation_checkpointing else ""
    print(
        f"{asked.model}, {result.parameters / 1e6:.1f} million parameters, random weights; {asked.dtype} on "
        f"{asked.device}{threads}{checkpointed}; {asked.rows} rows a step, {asked.documents} documents a row, block "
        f"size {asked.block_size}; {result.repeats} interleaved repeats (medians); {machine['processor']}, torch "
        f"{machine['torch']}, commit {machine['commit']}",
        file=out,
    )
    print(table(("attention", "L", "s/step", "tokens/s", "ratio", "range", "peak MiB"), rows), file=out)
    for name, reason in result.left_out.items():
        print(f"left out: {name} ({reason})", file=out)
    plain = asdict(result)
    for row in plain["rows"]:
        row["peak_mib"] = None if math.isnan(row["peak_mib"]) else row["peak_mib"]
    print(json.dumps({"benchmark": "train", **plain}), file=out, flush=True)
