"""`difflm bench decode`: a converted model against its AR parent, same prompts, one run.

Systems: block decoding of the converted model, next-token decoding of the parent in the same engine, and transformers'
own `generate` on the parent. Each is first tried at every dtype and thread count; at its fastest setting it then takes
part in the measurement, whose repeats are interleaved. The fastest AR system is the baseline.

Where the converted model drafts, its verified decoding takes part, and of weights that were trained as a whole their
own decoding left to right; every system then does at each dtype, as equal answers are promised dtype for dtype.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from difflm.bench.environment import environment, usable_cores
from difflm.bench.systems import (
    AR_SYSTEMS,
    CONVERTED_AR,
    PARENT_ENGINE,
    PARENT_TRANSFORMERS,
    VERIFIED,
    Answer,
    Builder,
    Kept,
    System,
    opened,
)
from difflm.decode.events import DraftCounts
from difflm.decode.request import SamplingParams
from difflm.errors import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A system at a dtype and a number of CPU threads."""

    system: str
    dtype: str
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A short run of a setting; decides which setting of a system is measured.

    Attributes:
        setting: what ran.
        tokens_per_second: of the fastest of the trial's rounds.
    """

    setting: Setting
    tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The measurement of a system at its best setting.

    Attributes:
        setting: what ran.
        tokens: generated tokens of one pass over the prompts, up to and including the first EOS of each.
        prefill, denoise, commit: forwards of one pass by kind.
        tokens_per_forward: tokens / (denoise + commit).
        seconds: of one pass; median over the repeats.
        tokens_per_second: median over the repeats.
        ratio: tokens per second over the baseline's, paired by repeat; median over the repeats.
        ratio_range: smallest and largest of these ratios.
        same_dtype_ratio: the same over the fastest AR system of the same dtype; None where that was not measured.
        drafts: of one pass, where drafts were verified.
        equal: of a system that verifies, the share of prompts that it answered as the AR system of its weights did at
            the same dtype, token for token.
    """

    setting: Setting
    tokens: int
    prefill: int
    denoise: int
    commit: int
    tokens_per_forward: float
    seconds: float
    tokens_per_second: float
    ratio: float
    ratio_range: tuple[float, float]
    same_dtype_ratio: float | None = None
    drafts: DraftCounts | None = None
    equal: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeBench:
    """Result of `bench_decode`.

    Attributes:
        converted, parent: names of the checkpoints.
        baseline: the fastest AR system.
        baseline_dtype: where it was the fastest.
        rows: one per system (and dtype, where drafts take part), the converted model first.
        trials: every setting that was tried.
        prompts, prompt_tokens: number of prompts and their tokens together.
        repeats: passes over the prompts.
        params: sampling parameters of the converted model.
        same_ar_answers: prompts that both AR systems answered alike (they may differ by rounding and dtype).
        environment: hardware, versions, commit.
    """

    converted: str
    parent: str
    baseline: str
    baseline_dtype: str
    rows: tuple[Row, ...]
    trials: tuple[Trial, ...]
    prompts: int
    prompt_tokens: int
    repeats: int
    params: SamplingParams
    same_ar_answers: int
    environment: dict[str, str | int | None] = field(default_factory=environment)


def default_threads() -> tuple[int, ...]:
    """Return the thread counts to try: one, and every usable core."""
    return tuple(sorted({1, usable_cores()}))


def bench_decode(
    converted: str | Path,
    parent: str | Path,
    prompts: Sequence[str | Sequence[int]],
    *,
    params: SamplingParams | None = None,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    threads: Sequence[int] | None = None,
    repeats: int = 5,
    trial_prompts: int = 2,
    say: Callable[[str], None] = lambda line: None,
) -> DecodeBench:
    """Measure the converted model against the fastest way to decode its AR parent, and return the figures.

    Args:
        converted: folder of the converted model.
        parent: folder or GGUF file of the AR model it was made from.
        prompts: token ids, or texts where the converted model has a tokenizer.
        params: of the converted model; `max_new_tokens` and `ignore_eos` also hold for the parent. None: defaults.
        dtypes: to try.
        threads: numbers of CPU threads to try; None: 1 and all usable cores.
        repeats: measured passes over the prompts.
        trial_prompts: prompts of a trial run.
        say: receives progress lines.

    Raises:
        RequestError: prompts that do not fit, or no repeats.
    """
    if repeats < 1 or trial_prompts < 1:
        raise RequestError(f"repeats: {repeats}, trial_prompts: {trial_prompts}; both must be at least 1")
    builder, ids = opened(Path(converted), Path(parent), prompts, params or SamplingParams())
    with kept_threads():
        trials = list(run_trials(builder, ids[:trial_prompts], dtypes, threads or default_threads(), say))
        best = measured_settings(trials, builder.systems, dtypes)
        passes = measure(builder, best, ids, repeats, say)
    baseline = fastest_ar(passes)
    first = {setting.system: passes[setting] for setting in reversed(best)}
    answers = [first[name][0].answers for name in (PARENT_ENGINE, PARENT_TRANSFORMERS)]
    return DecodeBench(
        converted=Path(converted).resolve().name,
        parent=Path(parent).resolve().name,
        baseline=baseline.system,
        baseline_dtype=baseline.dtype,
        rows=tuple(row_of(setting, passes, baseline) for setting in best),
        trials=tuple(trials),
        prompts=len(ids),
        prompt_tokens=sum(map(len, ids)),
        repeats=repeats,
        params=builder.params,
        same_ar_answers=sum(a.tokens == b.tokens for a, b in zip(*answers, strict=True)),
    )


@contextmanager
def kept_threads() -> Iterator[None]:
    """Restore torch's number of threads on leaving."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the prompts: the answers and its wall-clock seconds."""

    answers: tuple[Answer, ...]
    seconds: float

    @property
    def tokens(self) -> int:
        """Generated tokens, up to and including the first EOS of each answer."""
        return sum(answer.num_tokens for answer in self.answers)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second."""
        return self.tokens / self.seconds


def timed_pass(system: System, prompts: Sequence[Sequence[int]], threads: int) -> Pass:
    """Return one pass of a system over the prompts, one after the other.

    Args:
        system: what decodes.
        prompts: token ids.
        threads: CPU threads.
    """
    torch.set_num_threads(threads)
    started = time.perf_counter()
    answers = tuple(system(prompt) for prompt in prompts)
    return Pass(answers, time.perf_counter() - started)


def run_trials(
    builder: Builder,
    prompts: Sequence[Sequence[int]],
    dtypes: Sequence[str],
    threads: Sequence[int],
    say: Callable[[str], None],
) -> Iterator[Trial]:
    """Yield a trial of every system, dtype and thread count: the faster of two passes after a warm-up prompt."""
    for name in builder.systems:
        for dtype in dtypes:
            system = builder.build(name, dtype, {})
            for count in threads:
                timed_pass(system, prompts[:1], count)
                rate = max(timed_pass(system, prompts, count).tokens_per_second for _ in range(2))
                say(f"trial: {name}, {dtype}, {count} threads: {rate:.1f} tokens/s")
                yield Trial(setting=Setting(system=name, dtype=dtype, threads=count), tokens_per_second=rate)


def best_setting(trials: Sequence[Trial], system: str, dtype: str | None = None) -> Setting:
    """Return the fastest setting of a system, at one dtype if that is given."""
    own = (t for t in trials if t.setting.system == system and dtype in (None, t.setting.dtype))
    return max(own, key=lambda t: t.tokens_per_second).setting


def measured_settings(trials: Sequence[Trial], systems: Sequence[str], dtypes: Sequence[str]) -> list[Setting]:
    """Return the settings that are measured: the fastest of each system, or of each at each dtype where drafts are.

    Args:
        trials: of every system, dtype and thread count.
        systems: that take part.
        dtypes: that were tried.
    """
    if VERIFIED in systems:
        return [best_setting(trials, system, dtype) for dtype in dtypes for system in systems]
    return [best_setting(trials, system) for system in systems]


def measure(
    builder: Builder,
    settings: Sequence[Setting],
    prompts: Sequence[Sequence[int]],
    repeats: int,
    say: Callable[[str], None],
) -> dict[Setting, list[Pass]]:
    """Return the passes of each setting; they take turns, and the first one changes, within every repeat."""
    kept: Kept = {}
    systems = {setting: builder.build(setting.system, setting.dtype, kept) for setting in settings}
    for setting, system in systems.items():
        timed_pass(system, prompts[:1], setting.threads)
    passes: dict[Setting, list[Pass]] = {setting: [] for setting in systems}
    names = list(systems)
    for repeat in range(repeats):
        shift = repeat % len(names)
        for setting in names[shift:] + names[:shift]:
            passes[setting].append(timed_pass(systems[setting], prompts, setting.threads))
        rates = ", ".join(f"{each.system} {each.dtype} {passes[each][-1].tokens_per_second:.1f}" for each in names)
        say(f"repeat {repeat + 1}/{repeats}, tokens/s: {rates}")
    return passes


def fastest_ar(passes: Mapping[Setting, list[Pass]], dtype: str | None = None) -> Setting:
    """Return the setting of an AR system with the highest median speed, at one dtype if that is given."""
    candidates = [each for each in passes if each.system in AR_SYSTEMS and dtype in (None, each.dtype)]
    return max(candidates, key=lambda each: statistics.median(p.tokens_per_second for p in passes[each]))


def row_of(setting: Setting, passes: Mapping[Setting, list[Pass]], baseline: Setting) -> Row:
    """Return a setting's row, held against the baseline, the fastest AR system of its dtype, and its own AR text.

    Args:
        setting: what ran.
        passes: of all settings.
        baseline: the fastest AR setting of all.
    """
    row = summarise(setting, passes[setting], passes[baseline])
    alike = [each for each in passes if each.dtype == setting.dtype]
    if any(each.system in AR_SYSTEMS for each in alike):
        own = passes[fastest_ar(passes, setting.dtype)]
        row = replace(row, same_dtype_ratio=summarise(setting, passes[setting], own).ratio)
    if setting.system != VERIFIED:
        return row
    written = {each.system: passes[each][0].answers for each in alike}
    reference = written[CONVERTED_AR if CONVERTED_AR in written else PARENT_ENGINE]
    answers = passes[setting][0].answers
    equal = sum(mine.tokens == other.tokens for mine, other in zip(answers, reference, strict=True))
    return replace(row, drafts=drafts_of(answers), equal=equal / len(answers))


def drafts_of(answers: Sequence[Answer]) -> DraftCounts | None:
    """Return what became of the drafts of all answers; None where none were verified."""
    counts = sum((answer.drafts for answer in answers if answer.drafts is not None), DraftCounts())
    return counts if counts.cycles else None


def summarise(setting: Setting, passes: Sequence[Pass], baseline: Sequence[Pass]) -> Row:
    """Return a system's row; `baseline` are the passes of the same repeats that it is compared with."""
    answers = passes[0].answers
    denoise, commit = sum(a.denoise for a in answers), sum(a.commit for a in answers)
    ratios = [mine.tokens_per_second / other.tokens_per_second for mine, other in zip(passes, baseline, strict=True)]
    return Row(
        setting=setting,
        tokens=passes[0].tokens,
        prefill=sum(a.prefill for a in answers),
        denoise=denoise,
        commit=commit,
        tokens_per_forward=passes[0].tokens / (denoise + commit),
        seconds=statistics.median(p.seconds for p in passes),
        tokens_per_second=statistics.median(p.tokens_per_second for p in passes),
        ratio=statistics.median(ratios),
        ratio_range=(min(ratios), max(ratios)),
    )
