"""`difflm bench speed`: the decoding engine under forced schedules, case by case, on any model.

A case is measured at once, its systems taking turns, so that ratios inside a case are paired. Each finished case is a
line of a file; an interrupted run goes on with the next one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from difflm.bench import speed_cases as cases
from difflm.bench.decode import default_threads, kept_threads
from difflm.bench.environment import environment
from difflm.bench.speed_cases import Bench, Figures
from difflm.bench.speed_systems import PRECISIONS, Subject
from difflm.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedSettings:
    """What `bench_speed` measures.

    Attributes:
        model: see `Subject`.
        precisions: to try, of `PRECISIONS`; those that the model does not have are left out and named.
        threads: CPU threads to try; empty: 1 and all usable cores.
        prompt: tokens of a prompt.
        schedules: denoising forwards per block.
        forwards: denoising forwards per block where only one number is measured.
        new_tokens: of the comparison of systems.
        lengths: new tokens of the comparison with the released loop.
        batches: numbers of requests.
        rows: rows of a forward.
        repeats: of a case; a case that has taken `patience` seconds is not repeated again.
        patience: seconds.
        llama_python: interpreter with llama-cpp-python; None: llama.cpp is not measured.
    """

    model: str
    precisions: tuple[str, ...] = PRECISIONS
    threads: tuple[int, ...] = ()
    prompt: int = 64
    schedules: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    forwards: int = 8
    new_tokens: int = 128
    lengths: tuple[int, ...] = (64, 256, 1024)
    batches: tuple[int, ...] = (1, 4, 16, 64)
    rows: tuple[int, ...] = (1, 4, 8, 16, 32, 64)
    repeats: int = 3
    patience: float = 120.0
    llama_python: str | None = None


def bench_speed(
    settings: SpeedSettings, output: Path, *, fresh: bool = False, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Measure every case that `output` does not hold yet, and return all figures.

    Args:
        settings: what to measure.
        output: JSON lines: the settings, then a line per finished case.
        fresh: throw away what is there.
        say: receives a line per case.

    Raises:
        ConfigError: settings that cannot be used, or other ones than those of the file.
    """
    if settings.repeats < 1 or not settings.precisions:
        raise ConfigError(f"repeats: {settings.repeats}, precisions: {settings.precisions}; give at least one of each")
    if fresh:
        output.unlink(missing_ok=True)
    head, done = _read(output)
    plain = json.loads(json.dumps(asdict(settings)))
    if head is None:
        head = {"benchmark": "speed", "settings": plain, "environment": environment()}
        output.parent.mkdir(parents=True, exist_ok=True)
        _append(output, head)
    elif head["settings"] != plain:
        raise ConfigError(f"{output}: begun with other settings; finish it with those, name another file, or --fresh")
    bench = Bench(Subject(settings.model), settings.threads or default_threads(), settings.repeats, settings.patience)
    with kept_threads():
        try:
            for name, case in planned(bench, settings, done):
                if name in done:
                    continue
                started = time.perf_counter()
                done[name] = case()
                _append(output, {"case": name, "figures": done[name]})
                say(f"{name}: {time.perf_counter() - started:.0f} s")
        finally:
            bench.close()
    return {**head, "cases": done}


def planned(
    bench: Bench, settings: SpeedSettings, done: dict[str, Figures]
) -> Iterator[tuple[str, Callable[[], Figures]]]:
    """Yield the cases in their order; later ones read the figures of earlier ones from `done`."""
    refusals = {each: bench.subject.refusal(each) for each in settings.precisions}
    precisions = [each for each, reason in refusals.items() if reason is None]
    yield "left out", lambda: {each: reason for each, reason in refusals.items() if reason is not None}
    for threads in bench.threads:
        yield f"forward, {threads} threads", partial(cases.forward_cost, bench, precisions, settings.rows, threads)
    yield "trials", partial(cases.trials, bench, precisions, settings.forwards, settings.prompt, settings.llama_python)
    best = done["trials"]["best"]
    for precision in precisions:
        yield (
            f"schedules, {precision}",
            partial(cases.schedules, bench, precision, best, settings.schedules, settings.prompt, settings.new_tokens),
        )
    for length in settings.lengths:
        yield (
            f"loop, {length} tokens",
            partial(cases.against_loop, bench, best, settings.forwards, settings.prompt, length),
        )
    for count in settings.batches:
        yield (
            f"batch, {count} requests",
            partial(cases.batch, bench, best, settings.forwards, settings.prompt, count),
        )
    for precision in precisions:
        yield f"profile, {precision}", partial(cases.profile, bench, precision, settings.forwards, settings.prompt)


def _read(path: Path) -> tuple[dict[str, Any] | None, dict[str, Figures]]:
    """Return (first line or None, figures of the finished cases); what an interruption left of a line is cut off."""
    if not path.exists():
        return None, {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    found = [json.loads(line) for line in whole.splitlines()]
    if not found:
        return None, {}
    return found[0], {each["case"]: each["figures"] for each in found[1:]}


def _append(path: Path, entry: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
