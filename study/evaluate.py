"""What a stage's model is worth: right answers, tokens per forward and per second; and its own answers as data."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from difflm import LoadedModel, SamplingParams, generate, load_model, policy
from difflm.evaluation.measuring import NEXT_TOKEN, VERIFIED, Setting
from difflm.evaluation.sweep import Plan as SweepPlan
from difflm.evaluation.sweep import Point, sweep
from difflm.evaluation.tasks import Item
from difflm.evaluation.trajectories import Kept, attempts, kept, write_pairs, write_records
from difflm.types import Decoding
from study import plan as plans
from study.plan import Plan, Variant
from study.results import Results
from study.speed import Way, measure_speed
from study.tasks import Drawn, StudyTask, write_items

TOGETHER = 32
"""Answers decoded in one forward where only what they say counts."""

EQUAL_ITEMS = 40
"""Items of each task on which the drafter's answers are held against those without drafts."""


class Scorer:
    """Scores stages on the same unseen items.

    Args:
        plan: the sizes.
        tasks: what is scored.
        folder: of the study.
        results: gets the figures.
        say: is told what goes on.
    """

    def __init__(
        self, plan: Plan, tasks: Sequence[StudyTask], folder: Path, results: Results, say: Callable[[str], None]
    ) -> None:
        self.plan, self.tasks, self.folder, self.results, self.say = plan, tasks, folder, results, say
        self._drawn: dict[str, Drawn] = {}

    def drawn(self, task: StudyTask) -> Drawn:
        """Return a task with the items of the evaluation, made once."""
        if task.short not in self._drawn:
            found = tuple(task.items(self.plan.items, plans.EVALUATION))
            self._drawn[task.short] = Drawn(task, plans.EVALUATION, found)
        return self._drawn[task.short]

    def control(self, stage: str, model: Path) -> None:
        """Score an AR model, left to right."""
        self._points(stage, load_model(model), [Setting(policy=NEXT_TOKEN)], self.plan.items)

    def stage(self, stage: str, model: Path) -> None:
        """Score a model at its default, and the curve over thresholds on fewer items."""
        loaded = load_model(model)
        if stage == "lossless":
            self._points(stage, loaded, [self._verified], self.plan.items)
            self._equal(stage, loaded)
            return
        self._points(stage, loaded, [self._blocks(self.plan.threshold)], self.plan.items)
        others = [self._blocks(value) for value in self.plan.thresholds[:-1]]
        self._points(stage, loaded, others, self.plan.curve_items)

    def variant(self, variant: Variant, model: Path) -> None:
        """Score a variant of a stage, at the default threshold where it has none of its own."""
        threshold = self.plan.threshold if variant.threshold is None else variant.threshold
        settings: Mapping[Decoding, Setting] = {
            "block": self._blocks(threshold, variant.block_size),
            "next_token": Setting(policy=NEXT_TOKEN),
            "verified": self._verified,
        }
        setting = settings[variant.decoding]
        self._points(variant.name, load_model(model), [setting], self.plan.items)

    def speed(self, models: Mapping[str, Path], control: Path) -> None:
        """Time the main models against the AR control, one prompt after the other; a finished timing is kept."""
        if self.results.of("speed"):
            return
        longest = max(task.max_new_tokens for task in self.tasks)
        blocks = SamplingParams(
            max_new_tokens=longest, decoding="block", block_size=self.plan.block_size, threshold=self.plan.threshold
        )
        left = SamplingParams(max_new_tokens=longest, decoding="next_token")
        drafted = SamplingParams(
            max_new_tokens=longest, policy=policy("verified", window=self.plan.window, start=self.plan.window)
        )
        ways = [Way(stage="ar-sft", model=control, params=left)]
        ways += [
            Way(stage=stage, model=model, params=drafted if stage == "lossless" else blocks)
            for stage, model in models.items()
            if stage != "wsd"
        ]
        loaded = load_model(control)
        chosen = [item.prompt for task in self.tasks for item in self.drawn(task).found[: self.plan.speed_items]]
        prompts = [loaded.encode(prompt) for prompt in chosen]
        lines = measure_speed(ways, prompts, repeats=self.plan.repeats, compiled=self.plan.compiled, say=self.say)
        for line in lines:
            self.results.put(line)

    @property
    def _verified(self) -> Setting:
        return Setting(policy=VERIFIED, settings=(("window", self.plan.window), ("start", self.plan.window)))

    def _blocks(self, threshold: float, block_size: int | None = None) -> Setting:
        size = block_size or self.plan.block_size
        return Setting(
            policy="native",
            settings=(("block_length", size), ("threshold", threshold)),
            block_size=size,
            threshold=threshold,
        )

    def _points(self, stage: str, loaded: LoadedModel, settings: Sequence[Setting], items: int) -> None:
        for task in self.tasks:
            shared = SweepPlan(
                task=self.drawn(task),
                items=items,
                seed=plans.EVALUATION,
                params=SamplingParams(max_new_tokens=task.max_new_tokens),
                max_requests=TOGETHER,
                place={"dtype": "float32"},
            )
            for point in sweep(loaded, settings, shared, self.folder / "scores" / stage / f"{task.short}-{items}"):
                self.results.put(_score_line(stage, task, point))
        rows = [row for row in self.results.of("score", stage=stage) if row["items"] == items]
        share = sum(row["right"] for row in rows) / max(sum(row["items"] for row in rows), 1)
        self.say(f"    {stage}: {share:.3f} right over {len(rows)} points of {items} items")

    def _equal(self, stage: str, loaded: LoadedModel) -> None:
        """Count the answers that drafts do not change, in float32."""
        if self.results.of("equal", stage=stage):
            return
        same = total = 0
        for task in self.tasks:
            prompts = [item.prompt for item in self.drawn(task).found[:EQUAL_ITEMS]]
            base = SamplingParams(max_new_tokens=task.max_new_tokens)
            drafted = generate(loaded, prompts, self._verified.params(base))
            alone = generate(loaded, prompts, Setting(policy=NEXT_TOKEN).params(base))
            same += sum(a.tokens == b.tokens for a, b in zip(drafted, alone, strict=True))
            total += len(prompts)
        self.results.put({"kind": "equal", "stage": stage, "same": same, "items": total, "dtype": "float32"})


def _score_line(stage: str, task: StudyTask, point: Point) -> dict[str, Any]:
    """Return a point's figures; `marks` has a 1 for each item that is right, in order, for paired comparisons."""
    row, marks = point.row(), point.measured.scores
    kept_fields = ("policy", "block_size", "threshold", "items", "low", "high", "tpf", "num_tokens", "seconds")
    counts = ("prefill", "denoise", "commit", "tokens_per_cycle", "acceptance", "stuck")
    return {
        "kind": "score",
        "stage": stage,
        "task": task.short,
        **{name: row[name] for name in (*kept_fields, *counts)},
        "right": int(sum(marks)),
        "marks": "".join(str(int(mark)) for mark in marks),
    }


def questions(task: StudyTask, folder: Path, name: str, part: int, count: int) -> list[Item]:
    """Return the items whose prompts a data file has, with what the scorer needs to know of them."""
    lines = (folder / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = {json.loads(line)["prompt"] for line in lines}
    return list(itertools.islice((item for item in task.stream(part) if item.prompt in prompts), count))


def own_attempts(
    plan: Plan,
    tasks: Sequence[StudyTask],
    folder: Path,
    model: Path,
    *,
    part: int,
    name: str,
    count: int,
    **drawing: Any,
) -> Iterator[tuple[StudyTask, Kept]]:
    """Yield each task with what is worth learning from of a model's answers to its questions, at the default threshold.

    Args:
        plan: the sizes.
        tasks: what is answered.
        folder: of the study.
        model: what answers.
        part: of the tasks' items.
        name: of the data; its questions are in data/questions-NAME.jsonl.
        count: items of each task.
        drawing: of `SamplingParams`, how answers are drawn.
    """
    loaded = load_model(model)
    for task in tasks:
        asked = questions(task, folder, f"questions-{name}", part, count)
        params = SamplingParams(
            max_new_tokens=task.max_new_tokens,
            decoding="block",
            block_size=plan.block_size,
            threshold=plan.threshold,
            **drawing,
        )
        yield task, kept(task.short, attempts(loaded, task, asked, params, max_requests=TOGETHER))


def answer_tasks(
    plan: Plan,
    tasks: Sequence[StudyTask],
    folder: Path,
    model: Path,
    results: Results,
    say: Callable[[str], None],
) -> None:
    """Write data/own.jsonl: what the model answers right at the default threshold, with the step of each token."""
    path = folder / "data" / "own.jsonl"
    if path.is_file():
        return
    found: list[Kept] = []
    for task, each in own_attempts(plan, tasks, folder, model, part=plans.OWN, name="own", count=plan.own_items):
        found.append(each)
        say(f"    {each}")
        results.put({"kind": "own", "stage": "cap", "task": task.short, **each.counts})
    write_records(path, found)


def sample_pairs(
    plan: Plan,
    tasks: Sequence[StudyTask],
    folder: Path,
    model: Path,
    results: Results,
    say: Callable[[str], None],
) -> None:
    """Write data/preferred.jsonl, a right and a wrong sample of a prompt each, and the right ones for the control."""
    path = folder / "data" / "preferred.jsonl"
    if path.is_file():
        return
    found: list[Kept] = []
    for task, each in own_attempts(
        plan,
        tasks,
        folder,
        model,
        part=plans.PREFERRED,
        name="preferred",
        count=plan.preferred_items,
        temperature=1.0,
        n=plan.samples,
    ):
        found.append(each)
        say(f"    {each}")
        pairs = len(each.pairs)
        results.put({"kind": "own", "stage": "dpo", "task": task.short, "pairs": pairs, **each.counts})
    right = [Item(prompt=pair[0].prompt, reference=pair[0].completion) for each in found for pair in each.pairs]
    write_items(folder / "data" / "preferred-right.jsonl", right)
    write_pairs(path, found)
