"""Runs that are killed (SIGKILL) at chosen or random moments and resumed; `python -m tests.training.killed --help`.

A process that has imported everything forks a child for each attempt, so an attempt costs a training run of a second
and not an interpreter's start. A child counts what it does to the disk and to the model (events) and kills itself
before the n-th; files that are being written are left half written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from difflm.checkpoints import hf
from difflm.checkpoints.loading import load_model
from difflm.checkpoints.shards import ShardWriter
from difflm.plots import plot_training, read_rows
from difflm.runs import train
from difflm.training.config_io import load_config
from difflm.training.metrics import MetricsLog
from difflm.training.optim import Optimizer
from difflm.training.state import MOMENTS, checkpoint_folders
from difflm.training.trainer import Trainer

TIMES = ("seconds", "tokens_per_second", "memory_bytes")


class Events:
    """Counts events; kills the process before event number `kill_at` (from 0), None: never."""

    def __init__(self, kill_at: int | None, report: Path | None = None) -> None:
        self.kill_at, self.report = kill_at, report
        self.names: list[str] = []

    def happen(self, name: str, half: Callable[[], object] | None = None) -> None:
        """Note an event, or die before it; `half` does one half of it first."""
        if len(self.names) == self.kill_at:
            if half:
                half()
            if self.report:
                with self.report.open("w") as file:  # not write_text: that is an event
                    file.write(name)
            os.kill(os.getpid(), signal.SIGKILL)
        self.names.append(name)

    def watch(self, owner: Any, name: str) -> None:
        """Count the calls of a function or method."""
        real = vars(owner)[name]

        def counted(*args: Any, **options: Any) -> Any:
            self.happen(name)
            return real(*args, **options)

        setattr(owner, name, counted)


def watch_everything(events: Events) -> None:
    """Count flushes, renames, deletions, steps, and writes of files."""
    for owner, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (os, "unlink"), (os, "mkdir"), (os, "rmdir")):
        events.watch(owner, name)
    events.watch(Optimizer, "step")
    events.watch(Trainer, "_backward")
    events.watch(Trainer, "_validate")
    write_text, write_row, close_shard = Path.write_text, MetricsLog.write, vars(ShardWriter)["_close"]

    def text(path: Path, data: str, *args: Any, **options: Any) -> int:
        events.happen(f"write {path.name}", lambda: write_text(path, data[: len(data) // 2], *args, **options))
        return write_text(path, data, *args, **options)

    def tensors(data: Any, path: Path, *args: Any, **options: Any) -> None:
        def half() -> None:
            save_file(data, path, *args, **options)
            os.truncate(path, path.stat().st_size // 2)

        events.happen(f"write {path.name}", half)
        save_file(data, path, *args, **options)

    def shard(writer: ShardWriter, plan: Any, file: Any) -> None:
        events.happen(f"write {plan.file}", lambda: os.truncate(writer.folder / plan.file, plan.size // 2))
        close_shard(writer, plan, file)

    def row(log: MetricsLog, data: Any) -> None:
        def half() -> None:
            with log.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(data)[:30])

        events.happen("metrics", half)
        write_row(log, data)

    Path.write_text = text  # pyright: ignore[reportAttributeAccessIssue]
    hf.save_file = tensors
    ShardWriter._close = shard  # pyright: ignore[reportAttributeAccessIssue]
    MetricsLog.write = row  # pyright: ignore[reportAttributeAccessIssue]


def attempt(
    config: Path, output: Path, *, kill_at: int | None = None, seconds: float | None = None
) -> tuple[bool, str]:
    """Run or resume in a child; return whether it was killed, and before which event (or when)."""
    report = output.parent / f"{output.name}.event"
    report.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            events = Events(kill_at, report)
            watch_everything(events)
            train(load_config(config, [f"output={output}"]), resume="auto")
            with report.open("w") as file:
                json.dump(events.names, file)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or os.waitstatus_to_exitcode(status) == 0, f"{output}: a child failed"
    return killed, report.read_text() if report.exists() else f"after {seconds} s"


def digest(file: Path) -> str:
    """Return the hash of a file: unlike its bytes, quickly compared and shown where it differs."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def outcome(run: Path) -> tuple[str, str, list[dict[str, Any]]]:
    """Return what a run must reach whatever happened to it: weights, moments, metrics."""
    last = checkpoint_folders(run)[-1]
    rows = [
        {name: value for name, value in row.items() if name not in TIMES} for row in read_rows(run / "metrics.jsonl")
    ]
    return digest(last / "model.safetensors"), digest(last / MOMENTS), rows


def main() -> None:
    """Kill, resume and compare; print one JSON object a trial."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--points", type=int, default=5)
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw, work = random.Random(options.seed), options.config.parent
    # What a run imports as it goes, once for all children; no step is done here, so there are no threads to lose.
    load_model(load_config(options.config).model)
    (work / "warm.jsonl").write_text(json.dumps({"kind": "train", "num_tokens": 1, "loss": 1.0}))
    plot_training(work / "warm.jsonl", work / "warm.png")
    started = time.perf_counter()
    _, text = attempt(options.config, work / "whole")
    duration = time.perf_counter() - started
    names: list[str] = json.loads(text)
    expected = outcome(work / "whole")
    by_name: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        by_name.setdefault(name, []).append(number)
    kinds = sorted(by_name)
    draw.shuffle(kinds)
    # Each kind of event in turn, at a random one of its occurrences.
    points = [draw.choice(by_name[kinds[index % len(kinds)]]) for index in range(options.points)]
    trials: list[dict[str, Any]] = [{"kill_at": each} for each in points]
    trials += [{"seconds": draw.uniform(0.1, duration)} for _ in range(options.times)]
    for number, trial in enumerate(trials):
        output, deaths = work / f"trial-{number}", []
        killed, event = attempt(options.config, output, **trial)
        deaths += [event] * killed
        # The second attempt dies as well, somewhere else.
        killed, event = attempt(options.config, output, kill_at=draw.randrange(len(names)))
        deaths += [event] * killed
        attempt(options.config, output)
        left = [path.name for path in (output / "checkpoints").iterdir() if path.name.startswith(".")]
        print(json.dumps({"deaths": deaths, "equal": outcome(output) == expected, "left": left}), flush=True)


if __name__ == "__main__":
    main()
