"""`make study`: parent, conversion, SFT, CAP, DPO, the AR control of each, a lossless drafter; every figure kept.

    python -m study.run [--quick] [--output FOLDER] [--dtype DTYPE] [--lanes N] [--page FILE]

Every part is skipped when what it made is there, so the study may be interrupted at will and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

# Two threads that spin beside a busy neighbour can be ten times slower than one; torch reads this when it loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from difflm import DifflmError, convert
from difflm.bench.environment import environment
from difflm.checkpoints.folders import replace_text
from difflm.evaluation.tasks import Item
from difflm.plots import read_rows
from difflm.training.build import set_threads
from difflm.training.config import TrainConfig
from difflm.training.merge_methods import Best
from difflm.training.merging import merge_run
from study import plan as plans
from study.evaluate import Scorer, answer_tasks, sample_pairs
from study.lanes import Lanes
from study.parent import SPARE, learn_tokenizer, write_parent
from study.plan import FULL, QUICK, TASKS, VARIANTS, Plan, Variant, fast_dtype, plan_facts
from study.report import write_page
from study.results import Results
from study.tasks import StudyTask, study_task, write_items

QUICK_VARIANTS = ("sft-single", "cap-zero")
TOKENIZER_TEXTS = 2000
"""Items of each task from which the tokenizer is learnt."""


class Study:
    """The parts of the study, in order; each can be repeated for nothing.

    Args:
        plan: the sizes.
        tasks: what is learnt and scored.
        folder: of everything that is made.
        say: is told what goes on.
        variants: of stages, at the end.
        lanes: trainings at a time.
    """

    def __init__(
        self,
        plan: Plan,
        tasks: Sequence[StudyTask],
        folder: Path,
        say: Callable[[str], None],
        variants: Sequence[Variant] = VARIANTS,
        lanes: int = 1,
    ) -> None:
        self.plan, self.tasks, self.folder, self.say, self.variants = plan, tasks, folder, say, variants
        self.lanes = Lanes(lanes)
        self.results = Results(folder / "results.jsonl")
        self.scorer = Scorer(plan, tasks, folder, self.results, say)

    def run(self) -> None:
        """Do all parts that are left, and note how long this attempt took, whatever ends it."""
        check_plan(self.plan, self.folder)
        number, started = len(self.results.of("attempt")), time.perf_counter()
        try:
            self._run()
        finally:
            seconds = time.perf_counter() - started
            self.results.put({"kind": "attempt", "stage": str(number), "seconds": seconds})

    def _run(self) -> None:
        self.results.put({"kind": "environment", **environment()})
        self.results.put({"kind": "plan", **plan_facts(self.plan), "lanes": self.lanes.count})
        self.part("data", self.prepare)
        parent = self.trained("parent", plans.parent_run(self.plan, self.folder))
        left, blocks = self.lanes.together([lambda: self.left_to_right(parent), lambda: self.in_blocks(parent)])
        controls = {stage: left[stage] for stage in ("wsd", "sft")}
        models = dict(blocks)
        last = self.own_answers(models, controls)
        self.preferences(models, controls, last)
        models["lossless"] = left["lossless"]
        for stage, model in controls.items():
            self.part(f"score ar-{stage}", lambda s=stage, m=model: self.scorer.control(f"ar-{s}", m))
        for stage, model in models.items():
            self.part(f"score {stage}", lambda s=stage, m=model: self.scorer.stage(s, m))
        self.part("speed", lambda: self.scorer.speed(models, controls["sft"]))
        self.vary(models)

    def left_to_right(self, parent: Path) -> dict[str, Path]:
        """Train the AR controls of conversion and fine-tuning, and what drafts for the second."""
        found = {"wsd": self.control("wsd", parent, "continued")}
        found["sft"] = self.control("sft", found["wsd"], "tuned")
        found["lossless"] = self.lossless(found["sft"])
        return found

    def in_blocks(self, parent: Path) -> dict[str, Path]:
        """Convert the parent and fine-tune."""
        found = {"wsd": self.converted(parent)}
        found["sft"] = self.trained("sft", plans.sft_run(self.plan, self.folder, model=found["wsd"]))
        return found

    def part(self, name: str, work: Callable[[], object]) -> None:
        """Do a part and note its wall-clock seconds, the longest of all times that it was called."""
        started = time.perf_counter()
        self.say(f"{name}")
        work()
        before = max((row["seconds"] for row in self.results.of("part", stage=name)), default=0.0)
        self.results.put({"kind": "part", "stage": name, "seconds": max(before, time.perf_counter() - started)})

    def prepare(self) -> None:
        """Write the data files, no prompt in two of them or in the evaluation; the tokenizer; the random model."""
        plan, data = self.plan, self.folder / "data"
        if not (data / "parts.json").is_file():
            taken = {task.name: {item.prompt for item in self.scorer.drawn(task).found} for task in self.tasks}
            parts = {
                "validation": (plans.VALIDATION, plan.validation_items),
                "parent": (plans.PARENT, plan.parent_items),
                "continued": (plans.CONTINUED, plan.continued_items),
                "tuned": (plans.TUNED, plan.tuned_items),
                "questions-own": (plans.OWN, plan.own_items),
                "questions-preferred": (plans.PREFERRED, plan.preferred_items),
            }
            counts: dict[str, int] = {}
            for name, (part, count) in parts.items():
                found = {task.short: _fresh(task, part, count, taken[task.name]) for task in self.tasks}
                mixed = list(itertools.chain.from_iterable(found.values()))
                random.Random(f"order of {name}").shuffle(mixed)
                write_items(data / f"{name}.jsonl", mixed)
                counts[name] = len(mixed)
                if name == "parent":
                    texts = [
                        text
                        for items in found.values()
                        for item in items[:TOKENIZER_TEXTS]
                        for text in (item.prompt, item.reference)
                    ]
                    replace_text(data / "tokenizer-texts.json", json.dumps(texts))
            replace_text(data / "parts.json", json.dumps(counts))
        if not (self.folder / "random").is_dir():
            texts = json.loads((data / "tokenizer-texts.json").read_text(encoding="utf-8"))
            tokenizer = learn_tokenizer(texts, plan.vocabulary)
            size = write_parent(self.folder / "random", tokenizer, layers=plan.layers, hidden=plan.hidden, seed=0)
            self.results.put({"kind": "model", "parameters": size, "vocabulary": tokenizer.get_vocab_size()})

    def trained(self, name: str, config: TrainConfig) -> Path:
        """Train, or go on, or find it done; note what the run says of itself; return the last checkpoint."""
        found: list[Path] = []
        self.part(name, lambda: found.append(self.lanes.train(name, config)))
        rows = read_rows(config.output / "metrics.jsonl")
        steps = [row for row in rows if row["kind"] == "train"]
        checks = [row for row in rows if row["kind"] == "validation"]
        line = {"kind": "training", "stage": name, "tokens": config.total_tokens, "seconds": steps[-1]["seconds"]}
        if checks:
            line |= {"perplexity": checks[-1]["perplexity"], "ar_perplexity": checks[-1]["ar_perplexity"]}
        if "rewards" in steps[-1]:
            line["rewards"] = steps[-1]["rewards"]
        self.results.put(line)
        return found[0]

    def control(self, stage: str, model: Path, data: str) -> Path:
        """Train the AR control of a stage on its data and tokens."""
        return self.trained(f"ar-{stage}", plans.control_run(self.plan, self.folder, stage, model=model, data=data))

    def vary(self, models: Mapping[str, Path]) -> None:
        """Train and score the variants of stages that were trained."""
        starts = {"sft": models["wsd"], "cap": models["sft"]}

        def work(variant: Variant) -> None:
            model = models[variant.of]
            if variant.trained:
                run = plans.variant_run(self.plan, self.folder, variant, model=starts[variant.of])
                model = self.trained(variant.name, run)
            self.part(f"score {variant.name}", lambda: self.scorer.variant(variant, model))

        self.lanes.together([partial(work, each) for each in self.variants if each.of in models])

    def converted(self, parent: Path) -> Path:
        """Convert the parent, train the ladder, and merge its best checkpoints."""
        self._convert(parent, "converted", noisy="bidirectional", block=self.plan.block_size)
        self.trained("wsd", plans.wsd_run(self.plan, self.folder))
        merged = self.folder / "merged"
        if not merged.is_dir():
            result = merge_run(self.folder / "runs" / "wsd", merged, method=Best(4))
            members = [each.perplexity for each in result.members]
            self.results.put({"kind": "merge", "stage": "wsd", "members": members, "perplexity": result.perplexity})
        return merged

    def own_answers(self, models: dict[str, Path], controls: dict[str, Path]) -> Path:
        """Train CAP on what the fine-tuned model answers right; return the model to go on from."""
        sft = models["sft"]
        self.part("answers", lambda: answer_tasks(self.plan, self.tasks, self.folder, sft, self.results, self.say))
        if not self._enough("cap", self.folder / "data" / "own.jsonl"):
            return sft
        models["cap"], controls["cap"] = self.lanes.together(
            [
                lambda: self.trained("cap", plans.cap_run(self.plan, self.folder, model=sft)),
                lambda: self.control("cap", controls["sft"], "own"),
            ]
        )
        return models["cap"]

    def preferences(self, models: dict[str, Path], controls: dict[str, Path], last: Path) -> None:
        """Train DPO on right and wrong answers of the model, and the control on the right ones."""
        self.part("pairs", lambda: sample_pairs(self.plan, self.tasks, self.folder, last, self.results, self.say))
        if not self._enough("dpo", self.folder / "data" / "preferred.jsonl"):
            return
        before = controls.get("cap", controls["sft"])
        models["dpo"], controls["dpo"] = self.lanes.together(
            [
                lambda: self.trained("dpo", plans.dpo_run(self.plan, self.folder, model=last)),
                lambda: self.control("dpo", before, "preferred-right"),
            ]
        )

    def lossless(self, control: Path) -> Path:
        """Train an adapter that drafts for the AR control."""
        self._convert(control, "drafted", noisy="causal", block=self.plan.window)
        return self.trained("lossless", plans.draft_run(self.plan, self.folder, model=self.folder / "drafted"))

    def _convert(self, model: Path, name: str, *, noisy: str, block: int) -> None:
        if (self.folder / name).is_dir():
            return
        convert(
            model,
            self.folder / name,
            mask_token=SPARE,
            block_size=block,
            logit_shift=True,
            clean_attention="causal",
            noisy_attention="causal" if noisy == "causal" else "bidirectional",
            licence="apache-2.0",
            recipe="study",
        )

    def _enough(self, stage: str, path: Path) -> bool:
        """Return whether a file has the least number of records; note it where it has not."""
        count = len(path.read_text(encoding="utf-8").splitlines())
        if count < self.plan.least_records:
            reason = f"{count} records of the model's own, fewer than {self.plan.least_records}"
            self.results.put({"kind": "skipped", "stage": stage, "reason": reason})
            self.say(f"    {stage} left out: {reason}")
        return count >= self.plan.least_records


def _fresh(task: StudyTask, part: int, count: int, taken: set[str]) -> list[Item]:
    """Return new items of a part, and add their prompts to those that are taken."""
    found = list(itertools.islice(task.stream(part, taken), count))
    taken.update(item.prompt for item in found)
    return found


def check_plan(plan: Plan, folder: Path) -> None:
    """Record the plan in the folder; refuse a folder that holds another one."""
    record, text = folder / "plan.json", json.dumps(plan_facts(plan), indent=1)
    if record.is_file() and record.read_text(encoding="utf-8") != text:
        raise DifflmError(f"{folder}: holds a study of other sizes; delete it or choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(record, text)


def with_dtype(plan: Plan, folder: Path, asked: str | None) -> Plan:
    """Return a plan with a dtype: what was asked for, else what the folder's study has, else what is fast here."""
    record = folder / "plan.json"
    known = json.loads(record.read_text(encoding="utf-8"))["dtype"] if record.is_file() else fast_dtype()
    return replace(plan, dtype=asked or known)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Parse the command line and run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m study.run", description="The whole recipe on a small model.")
    parser.add_argument("--quick", action="store_true", help="a short run that shows the path, not the quality")
    parser.add_argument("--output", type=Path, help="folder of the study (default: runs/study[-quick])")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of training (default: what this processor is faster in)"
    )
    parser.add_argument(
        "--lanes", type=int, choices=range(1, 9), default=min(os.cpu_count() or 1, 2), help="trainings at a time"
    )
    parser.add_argument("--page", type=Path, help="page to write (default: study.md in the folder)")
    options = parser.parse_args(arguments)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    folder = options.output or Path("runs") / ("study-quick" if options.quick else "study")
    try:
        set_threads(None)
        tasks = [study_task(*each) for each in TASKS]
        plan = with_dtype(QUICK if options.quick else FULL, folder, options.dtype)
        # A short run has to show that variants work: two that are trained, and those that are decoded otherwise.
        variants = [each for each in VARIANTS if not options.quick or not each.trained or each.name in QUICK_VARIANTS]
        study = Study(plan, tasks, folder, lambda line: print(line, flush=True), variants, lanes=options.lanes)
        study.run()
        print(f"report: {write_page(folder, options.page or folder / 'study.md')}")
    except DifflmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
