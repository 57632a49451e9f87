"""What the demo's settings rest on: one factor changed at a time, equal training tokens, three seeds each.

    python -m benchmarks.settings --checkpoint SMOLLM2 --train text-train.jsonl --validation text-validation.jsonl \
        --work /tmp/settings --results settings.jsonl

Each setting trains SmolLM2-135M on the same number of text tokens; the results file grows by one JSON line a run and
an interrupted comparison goes on where it stopped. `--table` prints the table of what is there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from difflm.checkpoints.convert import convert
from difflm.plots import read_rows
from difflm.runs import train
from difflm.training.config_io import config_from_tree

SEEDS = (0, 1, 2)
LADDER = ((1, 0.055), (4, 0.11), ("row", 0.17), (32, 0.165), (8, 0.5))
BASE: dict[str, Any] = {
    "objective": {"kind": "block_diffusion", "weighting": "uniform", "ar_weight": 0.5},
    "optimizer": {"learning_rate": 2e-4, "mask_row_lr_scale": 15.0},
    "lr_schedule": {"kind": "wsd", "warmup_fraction": 0.03, "decay_fraction": 0.3, "final_ratio": 0.05},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "base: shift, AR co-loss 0.5, one stage of block 8, LR 2e-4": {},
    "no logit shift": {"model": "plain"},
    "no AR co-loss": {"objective": {"ar_weight": 0.0}},
    "curriculum 1 > 4 > row > 32 > 8": {"ladder": True},
    "LR 1e-4": {"optimizer": {"learning_rate": 1e-4}},
    "LR 4e-4": {"optimizer": {"learning_rate": 4e-4}},
    "embedding noise 0.1 RMS over the first third": {"noise": True},
    "complementary pairs": {"objective": {"complementary": True}},
}


def tree_of(setting: dict[str, Any], *, options: argparse.Namespace, seed: int, output: Path) -> dict[str, Any]:
    """Return the configuration of one run."""
    tokens = options.tokens
    stages = [{"block_size": 8, "tokens": tokens}]
    if setting.get("ladder"):
        stages = [{"block_size": size, "tokens": max(round(share * tokens), 1)} for size, share in LADDER]
    extra: dict[str, Any] = {}
    if setting.get("noise"):
        stages = [{"block_size": 8, "tokens": tokens // 3}, {"block_size": 8, "tokens": tokens - tokens // 3}]
        extra["embedding_noise"] = {"sigma": 0.1, "stages": 1}
    return {
        "model": str(options.work / setting.get("model", "shift")),
        "output": str(output),
        "data": {"paths": [str(options.train)], "validation_paths": [str(options.validation)], "row_length": 256},
        "curriculum": stages,
        "rows_per_batch": 2,
        "dtype": "bfloat16",
        "seed": seed,
        "threads": options.threads,
        "validation": {"rows": 24, "block_sizes": [4, 8, 32]},
        "checkpoint": {"every_tokens": 0, "keep": 1, "keep_best": 0},
        **{section: BASE[section] | setting.get(section, {}) for section in BASE},
        **extra,
    }


def run_all(options: argparse.Namespace) -> None:
    """Do the runs that the results file does not hold yet, seed by seed."""
    for name, shift in (("shift", True), ("plain", False)):
        if not (options.work / name).exists():
            convert(options.checkpoint, options.work / name, block_size=8, logit_shift=shift, clean_attention="causal")
    done = {(row["setting"], row["seed"]) for row in read_rows(options.results)} if options.results.exists() else set()
    for seed in SEEDS:
        for name, setting in SETTINGS.items():
            if (name, seed) in done:
                continue
            output = options.work / "run"
            shutil.rmtree(output, ignore_errors=True)
            started, cpu = time.perf_counter(), time.process_time()
            train(config_from_tree(tree_of(setting, options=options, seed=seed, output=output)))
            last = [row for row in read_rows(output / "metrics.jsonl") if row["kind"] == "validation"][-1]
            row = {
                "setting": name,
                "seed": seed,
                "tokens": options.tokens,
                "perplexity": last["perplexity"],
                "ar_perplexity": last["ar_perplexity"],
                "seconds": round(time.perf_counter() - started, 1),
                "cpu_seconds": round(time.process_time() - cpu, 1),
            }
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table: mean and standard deviation over the seeds."""

    def cell(values: list[float]) -> str:
        spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread}"

    lines = ["| setting | seeds | block 4 | block 8 | block 32 | AR | CPU s |", "|---|---|---|---|---|---|---|"]
    for name in SETTINGS:
        mine = [row for row in rows if row["setting"] == name]
        if mine:
            sizes = [cell([row["perplexity"][size] for row in mine]) for size in ("4", "8", "32")]
            causal, seconds = cell([row["ar_perplexity"] for row in mine]), cell([row["cpu_seconds"] for row in mine])
            lines.append(f"| {name} | {len(mine)} | {' | '.join(sizes)} | {causal} | {seconds} |")
    return "\n".join(lines)


def main() -> None:
    """Run or print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="SmolLM2-135M: folder or GGUF file")
    parser.add_argument("--train", type=Path, help="JSONL with text")
    parser.add_argument("--validation", type=Path, help="JSONL with text")
    parser.add_argument("--work", type=Path, default=Path("settings"), help="folder for models and runs")
    parser.add_argument("--results", type=Path, default=Path("settings.jsonl"), help="JSON lines, one a run")
    parser.add_argument("--tokens", type=int, default=12_000, help="training tokens of a run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of the results file and stop")
    options = parser.parse_args()
    if not options.table:
        options.work.mkdir(parents=True, exist_ok=True)
        run_all(options)
    print(table(read_rows(options.results)))


if __name__ == "__main__":
    main()
