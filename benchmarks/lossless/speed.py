"""Items decoded one by one in several ways that take turns: seconds, tokens, what became of drafts.

Every item is decoded by every system before the next item is, and each item begins with another system, so that a
machine whose speed changes changes it for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.lossless.adapters import random_drafter
from benchmarks.lossless.records import Results, Row
from difflm import Engine, LoadedModel, SamplingParams, load_model, policy
from difflm.checkpoints.hf_generate import TransformersGenerator
from difflm.decode.events import Completion, Event, Finished
from difflm.errors import ConfigError, DifflmError

NEXT_TOKEN, TRANSFORMERS, VERIFIED = "next token", "transformers", "verified"
FUSED: Mapping[str, bool | None] = {"never": False, "auto": None, "always": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One way of decoding.

    Attributes:
        way: "next token" and "verified" (our engine), or "transformers" (its `generate`).
        dtype: "float32", "bfloat16", or "int8": weights of the linear maps, the rest float32.
        window, fused: settings of "verified".
    """

    way: str
    dtype: str
    window: int | None = None
    fused: str | None = None

    @property
    def name(self) -> str:
        """Return what tables call it."""
        return self.way if self.window is None else f"{self.way}, window {self.window}, fused {self.fused}"

    @property
    def key(self) -> str:
        """Return its name and dtype."""
        return f"{self.name} ({self.dtype})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One prompt.

    Attributes:
        number: of the item.
        kind: of prompt, for tables.
        tokens: ids.
    """

    number: int
    kind: str
    tokens: tuple[int, ...]


def systems(dtypes: Sequence[str], windows: Sequence[int], fused: Sequence[str], *, others: bool) -> list[System]:
    """Return the grid of systems; transformers has no 8-bit weights of ours.

    Args:
        dtypes: "float32", "bfloat16", "int8".
        windows: largest windows of drafts.
        fused: "never", "auto", "always".
        others: measure transformers as well.
    """
    found: list[System] = []
    for dtype in dtypes:
        found.append(System(way=NEXT_TOKEN, dtype=dtype))
        if others and dtype != "int8":
            found.append(System(way=TRANSFORMERS, dtype=dtype))
        found += [System(way=VERIFIED, dtype=dtype, window=size, fused=each) for size in windows for each in fused]
    return found


@dataclass(slots=True)
class Decoders:
    """Models and engines, each loaded when it is first used.

    Attributes:
        drafter: folder of the adapter; None: a random one, on `base`.
        base: folder of the weights under it; None takes what the adapter names.
        max_new_tokens: longest answer.
        row_cost, draft_cost, start: settings of "verified"; None keeps its default.
    """

    drafter: Path | None
    base: Path | None
    max_new_tokens: int
    row_cost: float | None = None
    draft_cost: float | None = None
    start: int | None = None
    _loaded: dict[str, LoadedModel] = field(default_factory=dict[str, LoadedModel])
    _engines: dict[str, Engine] = field(default_factory=dict[str, Engine])
    _others: dict[str, TransformersGenerator] = field(default_factory=dict[str, TransformersGenerator])

    def loaded(self, dtype: str) -> LoadedModel:
        """Return base and adapter in a dtype; "int8": in float32, the base's linear maps in 8 bits.

        Raises:
            ConfigError: 8-bit weights that this machine does not have.
            DifflmError: folders that cannot be used.
        """
        if dtype not in self._loaded:
            weights, kind = ("int8", "float32") if dtype == "int8" else ("float", dtype)
            if self.drafter is not None:
                self._loaded[dtype] = load_model(self.drafter, dtype=kind, weights=weights)  # type: ignore[arg-type]
            elif dtype == "int8":
                raise ConfigError("a random adapter on 8-bit weights is not made; give a trained one")
            else:
                self._loaded[dtype] = random_drafter(self._base(), dtype=dtype)
        return self._loaded[dtype]

    def _base(self) -> Path:
        if self.base is not None:
            return self.base
        if self.drafter is None:
            raise DifflmError("--adapter random needs --model: the converted checkpoint that it goes on")
        return load_model(self.drafter).path if not self._loaded else next(iter(self._loaded.values())).path

    def usable(self, wanted: Sequence[System]) -> list[System]:
        """Return the systems that this machine has, and say which it has not."""
        kept: list[System] = []
        for system in wanted:
            try:
                self.loaded(system.dtype)
            except ConfigError as error:
                print(f"{system.key}: left out ({error})", flush=True)
                continue
            kept.append(system)
        return kept

    def decode(self, system: System, tokens: Sequence[int]) -> Row:
        """Decode one prompt and return what is recorded about it."""
        loaded = self.loaded(system.dtype)
        if system.way == TRANSFORMERS:
            generate = self._transformers(system.dtype)
            started = time.perf_counter()
            answer = generate(tokens, self.max_new_tokens)
            seconds = time.perf_counter() - started
            stopped = bool(answer) and answer[-1] in loaded.config.eos_token_ids
            text = loaded.decode(answer[: len(answer) - stopped])
            return {"seconds": seconds, "num_tokens": len(answer), "tokens": answer, "text": text}
        if system.dtype not in self._engines:
            self._engines[system.dtype] = Engine(loaded)
        params = SamplingParams(decoding="next_token", max_new_tokens=self.max_new_tokens)
        if system.way == VERIFIED:
            settings = {"row_cost": self.row_cost, "draft_cost": self.draft_cost, "start": self.start}
            given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
            drafting = policy("verified", window=system.window, fused=FUSED[system.fused or "auto"], **given)
            params = SamplingParams(policy=drafting, max_new_tokens=self.max_new_tokens)
        started = time.perf_counter()
        events = list(self._engines[system.dtype].stream(list(tokens), params))
        return {"seconds": time.perf_counter() - started, **facts_of(events)}

    def _transformers(self, dtype: str) -> TransformersGenerator:
        if dtype not in self._others:
            base = load_model(self.loaded(dtype).path, dtype=dtype)
            self._others[dtype] = TransformersGenerator(base, ends=base.config.eos_token_ids)
        return self._others[dtype]


def facts_of(events: Sequence[Event]) -> Row:
    """Return what is recorded of a request's events: tokens with their EOS, forwards, what became of drafts."""
    last = events[-1]
    assert isinstance(last, Finished), "a request that nobody cancels is finished"
    done: Completion = last.completion
    ended = [done.stopped_by] if isinstance(done.stopped_by, int) else []
    row: Row = {
        "num_tokens": done.num_tokens,
        "tokens": [*done.tokens, *ended],
        "text": done.text or "",
        "forwards": done.forwards.prefill + done.forwards.denoise + done.forwards.commit,
    }
    if done.drafts is not None:
        row["drafts"] = asdict(done.drafts)
    return row


@torch.inference_mode()
def measure(
    decoders: Decoders,
    items: Sequence[Item],
    wanted: Sequence[System],
    results: Results,
    *,
    score: Callable[[int, str], bool] | None = None,
) -> None:
    """Add a row of kind "item" for every item and system that the results do not have yet.

    Args:
        decoders: models.
        items: what is decoded.
        wanted: systems; those that this machine does not have are left out.
        results: where the rows go.
        score: item number and text -> whether the answer is right.
    """
    wanted = decoders.usable(wanted)
    done = results.done("item", "system", "item")
    warm: set[str] = set()
    for item in items:
        turn = item.number % len(wanted)
        for system in [*wanted[turn:], *wanted[:turn]]:
            if (system.key, item.number) in done:
                continue
            if system.key not in warm:  # the first call of a process pays for allocations
                decoders.decode(system, item.tokens)
                warm.add(system.key)
            found = decoders.decode(system, item.tokens)
            if score is not None:
                found["correct"] = score(item.number, found["text"])
            about = {"system": system.key, "name": system.name, "way": system.way, "dtype": system.dtype}
            results.add({"kind": "item", "item": item.number, "of": item.kind, **about, **found})
        print(f"item {item.number}: done", flush=True)
