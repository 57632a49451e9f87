"""The page of the study, from results.jsonl: tables, accuracy over tokens per forward, and which targets were met.

python -m study.report [FOLDER] [--page FILE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from difflm import DifflmError
from difflm.checkpoints.folders import replace_text
from difflm.evaluation.intervals import wilson
from difflm.plots import COLORS
from difflm.plots_decoding import new_figure
from study.plan import TASKS, VARIANTS
from study.results import Results
from study.targets import Verdict, at_default, difference, tokens_per_forward, verdicts

STAGES = ("ar-wsd", "wsd", "ar-sft", "sft", "ar-cap", "cap", "ar-dpo", "dpo", "lossless")
SAYS = {
    "wsd": "conversion (warm-up, stable, decay), best checkpoints merged",
    "sft": "fine-tuning with complementary pairs (Eq. 5)",
    "cap": "CAP (Eq. 6) on its own right answers",
    "dpo": "preferences (Eqs. 7-8)",
    "lossless": "AR control after `sft`, drafted by an adapter and verified",
}
INTRODUCTION = """# Study

<!-- written by study/report.py, but for what stands below "Findings"; do not edit -->

A small AR model is trained from random weights by difflm itself on {tasks} tasks of reasoning-gym, converted to block
diffusion, and goes through every stage of post-training. Beside it the AR parent goes on with next-token training on
the same data and as many tokens: the control. An answer is right if the dataset's own scorer gives it everything.

```bash
make study         # at most three hours on two cores; goes on where it stopped
make study-quick   # at most twenty minutes: the path, not the quality
python -m study.report runs/study --page docs/study.md    # this page again, from results.jsonl
```

| task | dataset and settings |
|---|---|
{rows}

Seeds of training and evaluation are apart, no prompt stands in two parts of the data, and evaluation prompts are in
none. Sizes, budgets and learning rates: `study/plan.py`. What is learnt in all stages are answers: prompts stay clean.
"""
FINDINGS = "## Findings\n"
ABSENT = "\n**Not run yet:** there are no figures on this page until `make study` has been run.\n"


def page(results: Results, picture: str | None) -> str:
    """Return the page in Markdown.

    Args:
        results: the figures; without any the page says so.
        picture: name of the picture beside the page; None without one.
    """
    rows = "\n".join(f"| {short} | `{line}` |" for short, line, _ in TASKS)
    text = INTRODUCTION.format(tasks=len(TASKS), rows=rows)
    if not results.of("score"):
        return text + ABSENT
    parts = [
        text,
        _about(results),
        _verdict_lines(verdicts(results)),
        _main_table(results),
        "## Each task\n\n" + task_table(results, STAGES),
    ]
    if picture:
        parts.append(f"![right answers over tokens per forward]({picture})\n")
    parts += [_curve_table(results), _variant_table(results), _speed_table(results), _training_table(results)]
    return "\n".join(part for part in parts if part)


def _about(results: Results) -> str:
    lines = []
    for row in results.of("environment"):
        lines.append(
            f"{row['processor']}, {row['cores']} cores, torch {row['torch']}, transformers {row['transformers']}, "
            f"commit {str(row['commit'])[:10]}."
        )
    for row in results.of("model"):
        lines.append(f"The model has {row['parameters'] / 1e6:.1f}M parameters and {row['vocabulary']} tokens.")
    for row in results.of("skipped"):
        lines.append(f"**Left out: {row['stage']}** ({row['reason']}).")
    attempts = results.of("attempt")
    if attempts:
        minutes = sum(row["seconds"] for row in attempts) / 60
        lanes = max((row.get("lanes", 1) for row in results.of("plan")), default=1)
        beside = f", {lanes} trainings at a time" if lanes > 1 else ""
        often = f" in {len(attempts)} attempts, each of which went on where the one before stopped"
        lines.append(f"All of it took {minutes:.0f} minutes{often if len(attempts) > 1 else ''}{beside}.")
    return " ".join(lines) + "\n"


def _verdict_lines(found: Sequence[Verdict]) -> str:
    table = [["target", "measured", "verdict"]]
    table += [[each.target, each.measured, each.verdict] for each in found]
    return "## Targets\n\n" + _table(table)


def _pooled(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return right answers and costs of all tasks together."""
    right, items = sum(row["right"] for row in rows), sum(row["items"] for row in rows)
    low, high = wilson(right / items, items)
    return {"right": right, "items": items, "low": low, "high": high, "tpf": tokens_per_forward(rows)}


def _main_table(results: Results) -> str:
    table = [["stage", "what", "items", "right, % (95 %)", "TPF"]]
    for stage in STAGES:
        rows = at_default(results, stage)
        if not rows:
            continue
        all_tasks = _pooled(rows)
        what = SAYS.get(stage) or f"AR control: next-token training on the data of `{stage.removeprefix('ar-')}`"
        table.append([stage, what, str(all_tasks["items"]), _share(all_tasks), f"{all_tasks['tpf']:.2f}"])
    text = "## Each stage, all tasks together\n\n" + _table(table)
    return text + "\nTPF: tokens up to the first EOS / (denoising and commit forwards); prefill is apart.\n"


def _share(row: dict[str, Any]) -> str:
    return f"{100 * row['right'] / row['items']:.1f} ({100 * row['low']:.1f}-{100 * row['high']:.1f})"


def task_table(results: Results, stages: Sequence[str]) -> str:
    """Return a table of right answers and TPF: a row for each stage that was scored, a column for each task.

    Args:
        results: the figures.
        stages: wanted.
    """
    names = [short for short, _, _ in TASKS]
    present = {row["task"] for row in results.of("score")}
    names = [name for name in names if name in present] + sorted(present - set(names))
    table = [["stage", *names]]
    for stage in stages:
        rows = {row["task"]: row for row in at_default(results, stage)}
        if rows:
            found = {name: _pooled([rows[name]]) for name in names if name in rows}
            cells = [f"{_share(found[name])}; {found[name]['tpf']:.2f}" if name in found else "-" for name in names]
            table.append([stage, *cells])
    return "Right, % (95 %); TPF.\n\n" + _table(table)


def curve(results: Results, stage: str) -> list[dict[str, Any]]:
    """Return accuracy and TPF of a stage over its thresholds, all tasks together."""
    thresholds = sorted({row["threshold"] for row in results.of("score", stage=stage) if row["threshold"] is not None})
    return [{"threshold": value, **_pooled(results.of("score", stage=stage, threshold=value))} for value in thresholds]


def _curve_table(results: Results) -> str:
    table = [["stage", "threshold", "items", "right, % (95 %)", "TPF"]]
    for stage in STAGES:
        points = curve(results, stage)
        if len(points) > 1:
            table += [
                [stage, f"{row['threshold']}", str(row["items"]), _share(row), f"{row['tpf']:.2f}"] for row in points
            ]
    return "## Thresholds\n\n" + _table(table) if len(table) > 1 else ""


def _variant_table(results: Results) -> str:
    """Return the variants, each beside the stage that it differs from."""
    table = [["run", "what differs", "right, % (95 %)", "points over the stage (95 %)", "TPF", "times the stage's"]]
    for of in ("sft", "cap"):
        stage = at_default(results, of)
        for variant in (each for each in VARIANTS if each.of == of):
            rows = at_default(results, variant.name)
            if not rows or not stage:
                continue
            own, beside = _pooled(rows), _pooled(stage)
            delta, low, high = difference(stage, rows)
            points, ratio = f"{delta:+.1f} ({low:+.1f} to {high:+.1f})", own["tpf"] / beside["tpf"]
            table.append([variant.name, variant.says, _share(own), points, f"{own['tpf']:.2f}", f"{ratio:.2f}"])
    if len(table) == 1:
        return ""
    head = "## Variants\n\nOne change each of `sft` or `cap`: same start, data and seeds, scored on the same items.\n\n"
    return head + _table(table)


def _speed_table(results: Results) -> str:
    rows = results.of("speed")
    if not rows:
        return ""
    table = [["stage", "system", "threads", "tokens/s", "over the fastest AR (range)", "TPF"]]
    for row in rows:
        ratio = f"{row['ratio']:.2f}x ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})"
        table.append([row["stage"], row["task"], str(row["threads"]), f"{row['tps']:.0f}", ratio, f"{row['tpf']:.2f}"])
    head = (
        f"## Speed\n\n{rows[0]['prompts']} prompts, one after the other, prefill included, float32; "
        f"{rows[0]['repeats']} repeats in turn, ratios paired by repeat. The fastest AR system: "
        f"{rows[0]['baseline']}.\n\n"
    )
    return head + _table(table)


def _training_table(results: Results) -> str:
    table = [["run", "tokens", "minutes", "perplexity by block size", "AR perplexity"]]
    for row in results.of("training"):
        sizes = ", ".join(f"{size}: {value:.3f}" for size, value in (row.get("perplexity") or {}).items())
        left = row.get("ar_perplexity")
        minutes, parent = f"{row['seconds'] / 60:.1f}", f"{left:.3f}" if left else "-"
        table.append([row["stage"], f"{row['tokens']:,}", minutes, sizes or "-", parent])
    lines = ["## Runs\n\nHeld-out answers of all tasks.\n\n" + _table(table)]
    own = results.of("own")
    if own:
        named = ("kept", "wrong", "unfinished", "respelt", "repeated", "pairs")
        counts = [["for", "task", *named]]
        counts += [[row["stage"], row["task"], *(str(row.get(name, 0)) for name in named)] for row in own]
        lines.append("\n## The model's own answers\n\n" + _table(counts))
    return "".join(lines)


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def draw(results: Results, png: Path) -> bool:
    """Draw accuracy over tokens per forward, a line for each stage with a curve; returns whether there was one."""
    curves = {stage: curve(results, stage) for stage in STAGES}
    curves = {stage: points for stage, points in curves.items() if len(points) > 1}
    if not curves:
        return False
    figure = new_figure((7.5, 5))
    axes = figure.subplots()
    for color, (stage, points) in zip(COLORS, curves.items(), strict=False):
        height = [100 * row["right"] / row["items"] for row in points]
        below = [value - 100 * row["low"] for value, row in zip(height, points, strict=True)]
        above = [100 * row["high"] - value for value, row in zip(height, points, strict=True)]
        place = [row["tpf"] for row in points]
        axes.errorbar(place, height, yerr=[below, above], marker="o", markersize=4, color=color, label=stage, capsize=2)
        for x, y, row in zip(place, height, points, strict=True):
            axes.annotate(f"{row['threshold']}", (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points")
    for stage, style in (("ar-sft", "--"), ("ar-cap", ":")):
        rows = at_default(results, stage)
        if rows:
            parent = _pooled(rows)
            share = 100 * parent["right"] / parent["items"]
            axes.axhline(share, color="black", linestyle=style, label=stage)
    axes.set_xlabel("tokens per forward")
    axes.set_ylabel("right answers (%)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(png, dpi=130)
    return True


def write_page(folder: Path, target: Path) -> Path:
    """Write the page of a study's folder, with its picture beside it, and return the page.

    What somebody wrote below the line `FINDINGS` of an earlier page stays.

    Args:
        folder: of the study.
        target: the page.
    """
    results = Results(folder / "results.jsonl")
    target.parent.mkdir(parents=True, exist_ok=True)
    before = target.read_text(encoding="utf-8") if target.is_file() else ""
    picture = target.with_suffix(".png")
    drawn = draw(results, picture)
    text = page(results, picture.name if drawn else None)
    replace_text(target, f"{text}\n{FINDINGS}{before.partition(FINDINGS)[2]}" if FINDINGS in before else text)
    return target


def main(arguments: Sequence[str] | None = None, say: Callable[[str], object] = print) -> int:
    """Parse the command line and write the page; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m study.report", description="The page of a study.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/study"), help="of the study")
    parser.add_argument("--page", type=Path, help="page to write (default: study.md in the folder)")
    options = parser.parse_args(arguments)
    try:
        say(str(write_page(options.folder, options.page or options.folder / "study.md")))
    except DifflmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
