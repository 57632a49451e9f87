"""The cases of `difflm bench speed`: each measures some systems in turns and returns its figures as plain data."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from difflm.bench.speed_systems import (
    AR_SYSTEMS,
    BLOCK,
    ENGINE,
    LLAMA,
    LOOP,
    NEXT_TOKEN,
    TRANSFORMERS,
    Decode,
    LlamaCpp,
    Probe,
    Run,
    Subject,
    engine_decode,
    loop_decode,
    next_token_decode,
    random_prompts,
    timed,
    transformers_decode,
)
from difflm.errors import DifflmError

Figures = dict[str, Any]
"""Plain data, as JSON has it."""

CACHED = 256
"""Cached tokens of the measured forwards, per sequence."""

TRIAL_TOKENS = 32
OPERATORS = 12
"""Operators that a profile lists."""


@dataclass(slots=True)
class Bench:
    """What all cases share.

    Attributes:
        subject: the model.
        threads: CPU threads to try.
        repeats: of a case.
        patience: seconds after which a case is not repeated again.
    """

    subject: Subject
    threads: Sequence[int]
    repeats: int
    patience: float
    _systems: dict[tuple[str, str, int, int], Decode] = field(default_factory=dict[tuple[str, str, int, int], Decode])

    def system(self, name: str, setting: Mapping[str, Any], forwards: int = 0) -> Decode:
        """Return a system at a setting (precision, threads), made once.

        Args:
            name: of the system.
            setting: one of the "best" of `trials`.
            forwards: denoising forwards per block, where it has blocks.
        """
        key = (name, setting["precision"], setting["threads"] if name == LLAMA else 0, forwards)
        if key not in self._systems:
            self._systems[key] = self._made(name, setting, forwards)
        return self._systems[key]

    def _made(self, name: str, setting: Mapping[str, Any], forwards: int) -> Decode:
        if name == LLAMA:
            assert self.subject.gguf is not None, "llama.cpp is tried on GGUF files alone"
            return LlamaCpp(setting["python"], self.subject.gguf, threads=setting["threads"])
        loaded = self.subject.loaded(setting["precision"])
        if name in (ENGINE, LOOP):
            return (engine_decode if name == ENGINE else loop_decode)(loaded, forwards)
        return next_token_decode(loaded) if name == NEXT_TOKEN else transformers_decode(loaded)

    def close(self) -> None:
        """End the processes that were started."""
        for system in self._systems.values():
            if isinstance(system, LlamaCpp):
                system.close()

    def turns(self, works: Mapping[str, Callable[[], tuple[float, Run | None]]]) -> dict[str, list[float]]:
        """Return the seconds of each work per repeat; they take turns, and the first one changes.

        Args:
            works: each returns its seconds; run once before, unless that alone would be too long.
        """
        names, started = list(works), time.perf_counter()
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for repeat in range(self.repeats):
            for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
                seconds[name].append(works[name]()[0])
            if time.perf_counter() - started > self.patience:
                break
        return seconds


def forward_cost(bench: Bench, precisions: Sequence[str], rows: Sequence[int], threads: int) -> Figures:
    """Time one forward of so many rows behind a cache, logits of all rows, in each precision."""
    torch.set_num_threads(threads)
    figures: Figures = {}
    for count in rows:
        probes = {
            each: Probe(bench.subject.loaded(each), sequences=1, rows=count, cached=CACHED, head=count)
            for each in precisions
        }
        seconds = probe_seconds(bench, probes)
        for precision, found in seconds.items():
            figures.setdefault(precision, {})[str(count)] = 1000 * found
    return figures


def probe_seconds(bench: Bench, probes: Mapping[str, Probe]) -> dict[str, float]:
    """Return the median seconds of each forward, taken in turns after one that does not count."""
    for probe in probes.values():
        probe()
    found = bench.turns({name: partial(_probed, probe) for name, probe in probes.items()})
    return {name: statistics.median(each) for name, each in found.items()}


def _probed(probe: Probe) -> tuple[float, None]:
    # The best of three: a forward is short, and whatever else runs only ever makes it longer.
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        probe()
        best = min(best, time.perf_counter() - started)
    return best, None


def trials(bench: Bench, precisions: Sequence[str], forwards: int, prompt: int, llama_python: str | None) -> Figures:
    """Find the fastest precision and threads of every system on one short answer: the faster of two passes."""
    tried: list[Figures] = []
    left_out: dict[str, str] = {}
    prompts = random_prompts(bench.subject.config, 1, prompt)
    for name in (ENGINE, LOOP, *AR_SYSTEMS):
        reason = _absent(bench, name, llama_python)
        settings = [{"precision": each, "threads": count} for each in precisions for count in bench.threads]
        if name == LLAMA:
            settings = [{"precision": "file", "threads": each, "python": llama_python} for each in bench.threads]
        for setting in [] if reason else settings:
            if name == TRANSFORMERS and setting["precision"] == "int8":
                continue
            try:
                system = bench.system(name, setting, forwards if name in (ENGINE, LOOP) else 0)
            except (DifflmError, ValueError, KeyError, OSError) as error:
                reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                break
            system(prompts, BLOCK)
            rate = max(
                run.tokens / seconds
                for seconds, run in (timed(system, prompts, TRIAL_TOKENS, setting["threads"]) for _ in range(2))
            )
            tried.append({"system": name, **setting, "tokens_per_second": rate})
        if reason:
            left_out[name] = reason
    names = dict.fromkeys(each["system"] for each in tried)
    best = {
        name: max((each for each in tried if each["system"] == name), key=lambda each: each["tokens_per_second"])
        for name in names
    }
    versions = [each.version for each in bench._systems.values() if isinstance(each, LlamaCpp)]  # pyright: ignore[reportPrivateUsage]
    return {"tried": tried, "best": best, "left_out": left_out, "llama_cpp": versions[0] if versions else None}


def _absent(bench: Bench, name: str, llama_python: str | None) -> str | None:
    if name == LLAMA and bench.subject.gguf is None:
        return "needs the weights as a GGUF file, and MODEL is none"
    if name == LLAMA and llama_python is None:
        return "no --llama-python was given"
    if name == TRANSFORMERS and bench.subject.config.model.moe is not None:
        return "has no class for this family"
    return None


def schedules(
    bench: Bench, precision: str, best: Mapping[str, Any], counts: Sequence[int], prompt: int, new_tokens: int
) -> Figures:
    """Time the engine in one precision at every forced schedule, and every AR system at its best, in turns."""
    prompts = random_prompts(bench.subject.config, 1, prompt)
    fastest = max((each for each in best_trials(bench, precision, best)), key=lambda each: each["tokens_per_second"])
    setting = {"precision": precision, "threads": fastest["threads"]}
    systems: dict[str, tuple[Decode, int]] = {
        f"S={count}": (bench.system(ENGINE, setting, count), setting["threads"]) for count in counts
    }
    for name in AR_SYSTEMS:
        if name in best:
            systems[name] = (bench.system(name, best[name]), best[name]["threads"])
    return {"threads": setting["threads"], "systems": compared(bench, systems, prompts, new_tokens)}


def best_trials(bench: Bench, precision: str, best: Mapping[str, Any]) -> list[Figures]:
    """Return short runs of the engine in a precision at every number of threads (the best one's is known)."""
    if best[ENGINE]["precision"] == precision:
        return [best[ENGINE]]
    prompts = random_prompts(bench.subject.config, 1, BLOCK)
    found: list[Figures] = []
    for threads in bench.threads:
        system = bench.system(ENGINE, {"precision": precision, "threads": threads}, 8)
        seconds = min(timed(system, prompts, TRIAL_TOKENS, threads)[0] for _ in range(2))
        found.append({"threads": threads, "tokens_per_second": TRIAL_TOKENS / seconds})
    return found


def compared(
    bench: Bench, systems: Mapping[str, tuple[Decode, int]], prompts: Sequence[Sequence[int]], new_tokens: int
) -> Figures:
    """Return tokens, forwards and seconds per repeat of each system, in turns, after a short pass that warms up.

    Args:
        bench: repeats.
        systems: name -> (system, threads).
        prompts: token ids.
        new_tokens: of each prompt.
    """
    runs: dict[str, Run] = {}
    for decode, threads in systems.values():
        timed(decode, prompts, BLOCK, threads)

    def work(name: str) -> tuple[float, Run]:
        decode, threads = systems[name]
        seconds, runs[name] = timed(decode, prompts, new_tokens, threads)
        return seconds, runs[name]

    seconds = bench.turns({name: partial(work, name) for name in systems})
    return {
        name: {"tokens": runs[name].tokens, "forwards": runs[name].forwards, "seconds": found}
        for name, found in seconds.items()
    }


def against_loop(bench: Bench, best: Mapping[str, Any], forwards: int, prompt: int, new_tokens: int) -> Figures:
    """Time the engine against the released loop, at the loop's best setting and at the engine's own."""
    prompts = random_prompts(bench.subject.config, 1, prompt)
    settings = {LOOP: best[LOOP], f"{ENGINE}, set as the loop": best[LOOP], ENGINE: best[ENGINE]}
    systems = {
        name: (bench.system(LOOP if name == LOOP else ENGINE, each, forwards), each["threads"])
        for name, each in settings.items()
    }
    found = compared(bench, systems, prompts, new_tokens)
    for name, each in settings.items():
        found[name] |= {"precision": each["precision"], "threads": each["threads"]}
    return found


def batch(bench: Bench, best: Mapping[str, Any], forwards: int, prompt: int, count: int) -> Figures:
    """Time two blocks of so many requests together, and the bare forwards that this takes, in turns.

    Rows through the head are those still masked: the mean over the forwards that denoise one block only.
    """
    setting = best[ENGINE]
    threads, loaded = setting["threads"], bench.subject.loaded(setting["precision"])
    prompts = random_prompts(bench.subject.config, count, prompt)
    masked = [BLOCK - step * (BLOCK // forwards) for step in range(forwards)]
    single = [*masked, *masked[1:]]
    near = partial(Probe, loaded, sequences=count, cached=prompt)
    probes = {
        "prefill": Probe(loaded, sequences=count, rows=prompt, cached=0, head=0),
        "denoise": near(rows=BLOCK, head=count * round(sum(single) / len(single))),
        "commit and denoise": near(rows=2 * BLOCK, head=count * BLOCK),
    }
    times = {"prefill": 1, "denoise": len(single), "commit and denoise": 1}
    engine = bench.system(ENGINE, setting, forwards)
    torch.set_num_threads(threads)
    timed(engine, prompts, BLOCK, threads)

    def bare() -> tuple[float, None]:
        started = time.perf_counter()
        for name, probe in probes.items():
            for _ in range(times[name]):
                probe()
        return time.perf_counter() - started, None

    seconds = bench.turns({"bare": bare, ENGINE: partial(timed, engine, prompts, 2 * BLOCK, threads)})
    return {
        "precision": setting["precision"],
        "threads": threads,
        "tokens": 2 * BLOCK * count,
        "forwards": times,
        "seconds": seconds[ENGINE],
        "bare_seconds": seconds["bare"],
    }


def profile(bench: Bench, precision: str, forwards: int, prompt: int) -> Figures:
    """Split the CPU time of two blocks at batch 1, one thread: model and head, the engine's rest, and by operator."""
    loaded = bench.subject.loaded(precision)
    engine = engine_decode(loaded, forwards)
    prompts = random_prompts(bench.subject.config, 1, prompt)
    torch.set_num_threads(1)
    run = engine(prompts, 2 * BLOCK)
    shares: list[tuple[float, float]] = []
    for _ in range(bench.repeats):
        with Watch(loaded.model, loaded.model.head) as watch:
            started = time.process_time()
            engine(prompts, 2 * BLOCK)
            shares.append((time.process_time() - started, watch.seconds))
    with torch_profile(activities=[ProfilerActivity.CPU]) as found:
        engine(prompts, 2 * BLOCK)
    events = sorted(found.key_averages(), key=lambda each: -each.self_cpu_time_total)
    total = sum(each.self_cpu_time_total for each in events)
    passes, calls = run.forwards or 1, sum(each.count for each in events)
    overhead = statistics.median(whole / inside - 1.0 for whole, inside in shares)
    return {
        "seconds": statistics.median(whole for whole, _ in shares),
        "engine_over_model": overhead,
        "forwards": passes,
        "operators_per_forward": calls / passes,
        "empty_operator_us": empty_operator_us(),
        "operators": [
            {"name": each.key, "calls": each.count, "share": each.self_cpu_time_total / total}
            for each in events[:OPERATORS]
        ],
    }


def empty_operator_us() -> float:
    """Return what one operator on one number costs, microseconds of CPU time: the price of calling it."""
    one = torch.ones(1)
    count, started = 20_000, time.process_time()
    with torch.inference_mode():
        for _ in range(count):
            one.neg()
    return (time.process_time() - started) / count * 1e6


class Watch:
    """Adds up the CPU time inside modules while it is entered.

    Args:
        modules: none inside another one's forward.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self.modules, self.seconds, self._started = modules, 0.0, 0.0

    def __enter__(self) -> Watch:
        self._hooks = [each.register_forward_pre_hook(self._start) for each in self.modules]
        self._hooks += [each.register_forward_hook(self._stop) for each in self.modules]
        return self

    def _start(self, *_: object) -> None:
        self._started = time.process_time()

    def _stop(self, *_: object) -> None:
        self.seconds += time.process_time() - self._started

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
