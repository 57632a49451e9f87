"""Tokens per second, prompt after prompt, all ways in turn within each repeat; the fastest AR one is the unit."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from difflm import Engine, LoadedModel, SamplingParams, load_model
from difflm.bench.decode import Pass, kept_threads, timed_pass
from difflm.bench.systems import EngineSystem, System, TransformersSystem
from difflm.checkpoints.hf_generate import TransformersGenerator
from difflm.models.cache import bytes_per_token

EXECUTIONS = ("difflm, plain", "difflm, compiled")
ROOM = 64
"""Tokens of cache beside prompt and answer: the rest of their blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A model and how it is decoded.

    Attributes:
        stage: of the study; "ar-..." are the baselines.
        model: its folder.
        params: of decoding.
    """

    stage: str
    model: Path
    params: SamplingParams

    @property
    def autoregressive(self) -> bool:
        """Whether it takes part as a baseline."""
        return self.params.decoding == "next_token"


def measure_speed(
    ways: Sequence[Way],
    prompts: Sequence[Sequence[int]],
    *,
    repeats: int,
    compiled: bool,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Return a line for every way and system: tokens per second and the ratio over the fastest AR one.

    Every system decodes all prompts before, and keeps the number of threads with which it was the faster. Where
    torch.compile does not work, a line of kind "skipped" says why.

    Args:
        ways: to compare; at least one is autoregressive.
        prompts: token ids.
        repeats: passes of each; the systems take turns, and the first one changes.
        compiled: whether torch.compile takes part, in our engine for every way (its minutes are not timed).
        say: is told of each system.
    """
    systems: dict[tuple[str, str], System] = {}
    loaded: dict[Path, LoadedModel] = {}
    lines: list[dict[str, Any]] = []
    for way in ways:
        model = loaded.setdefault(way.model, load_model(way.model))
        for name in _names(way, compiled=compiled):
            systems[way.stage, name] = _system(way, model, name, room=max(map(len, prompts)) + ROOM)
    passes: dict[tuple[str, str], list[Pass]] = {}
    with kept_threads():
        threads: dict[tuple[str, str], int] = {}
        for key, system in list(systems.items()):
            try:
                threads[key] = _threads(system, prompts)
            # A machine without a compiler, or a kernel that it refuses: torch raises errors of many classes.
            except Exception as error:
                if key[1] != EXECUTIONS[1]:
                    raise
                reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                say(f"    {' '.join(key)} does not run here: {reason}")
                lines.append({"kind": "skipped", "stage": " ".join(key), "reason": reason})
                del systems[key]
        for repeat in range(repeats):
            order = list(systems)
            shift = repeat % len(order)
            for key in order[shift:] + order[:shift]:
                passes.setdefault(key, []).append(timed_pass(systems[key], prompts, threads[key]))
    left_to_right = {way.stage for way in ways if way.autoregressive}
    baselines = [key for key in passes if key[0] in left_to_right]
    unit = max(baselines, key=lambda key: statistics.median(each.tokens_per_second for each in passes[key]))
    for (stage, name), own in passes.items():
        line = _line(own, passes[unit])
        lines.append({"kind": "speed", "stage": stage, "task": name, "threads": threads[stage, name], **line})
        lines[-1]["baseline"] = " ".join(unit)
        say(f"    {stage}, {name}: {line['tps']:.1f} tokens/s, {line['ratio']:.2f}x")
    return lines


def _names(way: Way, *, compiled: bool) -> list[str]:
    names = EXECUTIONS if compiled else EXECUTIONS[:1]
    return [*names, *(["transformers"] if way.autoregressive else [])]


def _system(way: Way, model: LoadedModel, name: str, *, room: int) -> System:
    """Return a system with the model.

    Args:
        way: how it decodes.
        model: of the way.
        name: of `_names`.
        room: tokens of the longest prompt, with the blocks that an answer begins and ends in.
    """
    if name == EXECUTIONS[1]:
        # The whole cache of a compiled engine is seen by every row: room for one request.
        each = bytes_per_token(model.model.config, model.model.embedding.weight.dtype)
        size = each * (room + way.params.max_new_tokens)
        return EngineSystem(Engine(model, execution="compiled", cache_bytes=size, max_requests=1), way.params)
    if name == EXECUTIONS[0]:
        return EngineSystem(Engine(model), way.params)
    ends = frozenset(model.config.eos_token_ids)
    return TransformersSystem(TransformersGenerator(model, ends=ends), way.params.max_new_tokens, ends)


def _threads(system: System, prompts: Sequence[Sequence[int]]) -> int:
    """Return one, or all that torch has: what is faster in the second of two passes."""
    rates = {count: max(timed_pass(system, prompts, count).tokens_per_second for _ in range(2)) for count in _counts()}
    return max(rates, key=lambda count: rates[count])


def _counts() -> list[int]:
    return sorted({1, torch.get_num_threads()})


def _line(own: Sequence[Pass], unit: Sequence[Pass]) -> Mapping[str, Any]:
    ratios = [mine.tokens_per_second / other.tokens_per_second for mine, other in zip(own, unit, strict=True)]
    answers = own[0].answers
    forwards = sum(answer.denoise + answer.commit for answer in answers)
    return {
        "tps": statistics.median(each.tokens_per_second for each in own),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "tpf": own[0].tokens / forwards,
        "tokens": own[0].tokens,
        "prompts": len(answers),
        "repeats": len(own),
    }
