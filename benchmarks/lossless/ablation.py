"""Which adapter drafts best for a CPU budget: recipe lossless_smollm2, one setting changed at a time.

A short run measures what a token of a setting costs; the run itself gets as many tokens as the budget pays for, so that
its learning rate falls to zero just then, and can be interrupted. Costs are CPU seconds of the process, all threads;
those beside the points of a curve contain loading and validation, which the budget does not, and not what a run had
spent behind its last validation when it was interrupted.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lossless.records import Results, Row, table
from difflm import DifflmError, train
from difflm.checkpoints.loading import load_without_weights
from difflm.recipes import recipe
from difflm.training.config import TrainConfig
from difflm.training.metrics import Metrics, Silent

RECIPE = "lossless_smollm2"
WINDOW = 4
WARM, TIMED = 1, 2
"""Steps of a trial: before the clock starts, and on the clock."""


def grid(layers: int) -> dict[str, list[str]]:
    """Return name -> overrides of the recipe; the first one is the recipe itself, with windows of one size.

    Args:
        layers: of the base.
    """
    inputs = ("query", "key", "value", "gate", "up")
    upper = ", ".join(f"'layers.{number}.*{name}'" for number in range(layers // 2, layers) for name in inputs)
    return {
        "recipe": [],
        **{f"rank {rank}": [f"lora.rank={rank}", f"lora.alpha={2.0 * rank}"] for rank in (16, 32, 92)},
        "outputs as well": ["lora.targets=[attention, mlp]"],
        "query, key, value": ["lora.targets=['*.query', '*.key', '*.value']"],
        "gate, up": ["lora.targets=['*.gate', '*.up']"],
        "upper half of the layers": [f"lora.targets=[{upper}]"],
        "KL against the base": ["objective.draft_loss=kl"],
        "TV against the base": ["objective.draft_loss=tv"],
        "windows of every length": ["objective.noise=draft"],
        "no draft head": ["lora.draft_head=0"],
        "draft head of rank 64": ["lora.draft_head=64"],
        **{f"window {size}": [f"curriculum.0.block_size={size}"] for size in (2, 8, 16)},
        "LR 1e-3": ["optimizer.learning_rate=1e-3"],
        "LR 4e-3": ["optimizer.learning_rate=4e-3"],
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What all runs share.

    Attributes:
        base: converted checkpoint.
        data: folder with train.jsonl and validation.jsonl.
        work: folder for the runs.
        cpu_seconds: budget of a run, what the trial cost not included.
        validations: points of each curve.
        rows: validation rows.
        dtype: of the training.
        threads: of torch.
        keep: leave the checkpoints of every run.
        overrides: of the recipe, in every run.
    """

    base: Path
    data: Path
    work: Path
    cpu_seconds: float
    validations: int = 4
    rows: int = 24
    dtype: str = "bfloat16"
    threads: int = 1
    keep: bool = False
    overrides: tuple[str, ...] = ()


class Clock(Silent):
    """Takes the CPU time of every step, and hands validation rows on.

    Args:
        results: where rows go; None: nowhere.
        setting: name.
        spent: CPU seconds before this process.
    """

    def __init__(self, results: Results | None = None, setting: str = "", spent: float = 0.0) -> None:
        self.results, self.setting = results, setting
        self.began = time.process_time() - spent
        self.steps: list[tuple[int, float]] = []

    def update(self, metrics: Metrics) -> None:
        """Take in a row of metrics.jsonl."""
        now = time.process_time() - self.began
        if metrics["kind"] == "train":
            self.steps.append((metrics["num_tokens"], now))
        if metrics["kind"] == "validation" and self.results is not None:
            drafts: Mapping[str, Any] = metrics["drafts"]
            row = {"setting": self.setting, "num_tokens": metrics["num_tokens"], "cpu_seconds": round(now, 1)}
            row |= {"tokens_per_cycle": drafts["tokens_per_cycle"], "agreement": drafts["agreement"]}
            self.results.add({"kind": "validation", **row})

    @property
    def cost(self) -> float:
        """Return CPU seconds per token of the steps after the first ones.

        Raises:
            DifflmError: too few steps for that.
        """
        steps = self.steps[WARM - 1 :]
        if len(steps) < 2:
            raise DifflmError(f"{self.setting}: the trial had {len(self.steps)} steps; give more training text")
        (tokens, began), (last, ended) = steps[0], steps[-1]
        return (ended - began) / (last - tokens)


def config_of(plan: Plan, overrides: Sequence[str], *, output: Path, tokens: int, trial: bool) -> TrainConfig:
    """Return the configuration of a run.

    Args:
        plan: what all runs share.
        overrides: of the setting.
        output: run folder.
        tokens: length of the run.
        trial: short, without validation.
    """
    every = max(tokens // plan.validations, 1)
    shared = [
        f"curriculum=[{{block_size: {WINDOW}, tokens: {tokens}}}]",
        f"data.validation_paths=[{plan.data / 'validation.jsonl'}]",
        "data.validation_fraction=0.0",
        f"dtype={plan.dtype}",
        f"threads={plan.threads}",
        f"validation.rows={plan.rows if not trial else 1}",
        f"validation.every_tokens={0 if trial else every}",
        f"checkpoint.every_tokens={0 if trial else every}",
        "checkpoint.keep=1",
    ]
    given = [*shared, *plan.overrides, *overrides]
    return recipe(RECIPE, model=plan.base, output=output, data=plan.data / "train.jsonl", overrides=given)


def run(plan: Plan, results: Results, names: Sequence[str] | None) -> None:
    """Do the runs that the results do not have yet, one after the other.

    Args:
        plan: what all runs share.
        results: where rows go.
        names: settings, by the beginnings of their names; None: all.
    """
    settings = grid(load_without_weights(plan.base).config.model.num_layers)
    chosen = [each for each in settings if names is None or any(each.startswith(name) for name in names)]
    for name in chosen:
        if (name,) in results.done("run", "setting"):
            continue
        output = plan.work / folder_name(name)
        planned = {row["setting"]: row for row in results.of("plan")}
        if name not in planned:
            cost = trial(plan, settings[name])
            row = {"setting": name, "cost": cost, "num_tokens": max(round(plan.cpu_seconds / cost), 1)}
            results.add({"kind": "plan", **row})
            planned[name] = row
        tokens = planned[name]["num_tokens"]
        print(f"{name}: {tokens} tokens in {plan.cpu_seconds:.0f} CPU seconds", flush=True)
        spent = max((row["cpu_seconds"] for row in results.of("validation") if row["setting"] == name), default=0.0)
        clock = Clock(results, name, spent)
        config = config_of(plan, settings[name], output=output, tokens=tokens, trial=False)
        last = train(config, resume="auto", observer=clock)
        results.add({"kind": "run", "setting": name, "checkpoint": str(last) if plan.keep else None})
        if not plan.keep:
            shutil.rmtree(output)


def trial(plan: Plan, overrides: Sequence[str]) -> float:
    """Return the CPU seconds of a training token under a setting."""
    output = plan.work / f"trial-{os.getpid()}"
    shutil.rmtree(output, ignore_errors=True)
    config = config_of(plan, overrides, output=output, tokens=1, trial=True)
    step = config.rows_per_batch * config.accumulation * config.data.row_length
    clock = Clock(setting=f"trial of {step * (WARM + TIMED)} tokens")
    train(config_of(plan, overrides, output=output, tokens=step * (WARM + TIMED), trial=True), observer=clock)
    shutil.rmtree(output)
    return clock.cost


def folder_name(setting: str) -> str:
    """Return a setting's name as that of a folder."""
    return "".join(letter if letter.isalnum() else "-" for letter in setting.lower())


def curves(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the validation rows of each setting by tokens; of rows for the same tokens the last (a resumed run's)."""
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        if row.get("kind") == "validation":
            found.setdefault(row["setting"], {})[row["num_tokens"]] = row
    return {name: [each[tokens] for tokens in sorted(each)] for name, each in found.items()}


def summary(rows: Sequence[Row]) -> str:
    """Return the last point of every setting, and the curves of tokens per cycle."""
    found = curves(rows)
    lines: list[list[Any]] = []
    for name, points in found.items():
        last = points[-1]
        agreement: Mapping[str, float] = last["agreement"]
        places = [agreement.get(str(place)) for place in (2, 3, 4, 8)]
        lines.append([name, last["num_tokens"], last["cpu_seconds"], last["tokens_per_cycle"], *places])
    head = ["setting", "tokens", "CPU s", "tokens per cycle", *(f"agreement at {place}" for place in (2, 3, 4, 8))]
    points = [
        [name, " ".join(f"{row['num_tokens']}: {row['tokens_per_cycle'] or 0.0:.2f}" for row in each)]
        for name, each in found.items()
    ]
    return table(head, lines) + "\n\n" + table(["setting", "tokens trained: tokens per cycle"], points)
