"""The task's measure: exact match, tokens per forward and per second, for one way of decoding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from demo.task import Item, Split, exact_match, items
from difflm import Engine, LoadedModel, SamplingParams
from difflm.evaluation.intervals import wilson

MAX_NEW_TOKENS = 56
"""The longest answer has 35 tokens with its EOS; the rest is room to fail in."""

EVALUATION_SEED = 20_000

LOSSLESS = "lossless (AR control, drafted)"
"""Name of the way in which an adapter drafts and the AR control verifies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way of decoding, measured on one split.

    Attributes:
        name: of the way.
        split: "fresh" (values of training, new records) or "unseen" (values that training never showed).
        count, correct: items, and exact matches among them.
        tokens: generated tokens up to and including the first EOS.
        prefill, denoise, commit: forwards; a fused commit + denoise counts once, as denoise.
        seconds: wall time of all items, one after the other, prefill included.
        answers: the text of every item, in order.
    """

    name: str
    split: Split
    count: int
    correct: int
    tokens: int
    prefill: int
    denoise: int
    commit: int
    seconds: float
    answers: list[str]

    @property
    def tokens_per_forward(self) -> float:
        """TPF: tokens / (denoise + commit forwards)."""
        return self.tokens / max(self.denoise + self.commit, 1)

    @property
    def tokens_per_second(self) -> float:
        """TPS: tokens / wall seconds."""
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the exact match."""
        return wilson(self.correct / self.count, self.count)


def measure(name: str, loaded: LoadedModel, split: Split, count: int, params: SamplingParams) -> Row:
    """Decode `count` items of a split one by one and score them."""
    examples = items(split, count, EVALUATION_SEED)
    params = replace(params, max_new_tokens=MAX_NEW_TOKENS)
    engine = Engine(loaded)
    # Not timed: the first call of a process pays for allocations.
    engine.generate([examples[0].prompt], params)
    # One call for each: those of one call would be decoded together, and the seconds of each be those of all.
    completions = [engine.generate([example.prompt], params)[0] for example in examples]
    forwards = [each.forwards for each in completions]
    return Row(
        name=name,
        split=split,
        count=count,
        correct=sum(exact_match(each.text or "", item) for each, item in zip(completions, examples, strict=True)),
        tokens=sum(len(each.tokens) + (each.finish_reason == "stop") for each in completions),
        prefill=sum(each.prefill for each in forwards),
        denoise=sum(each.denoise for each in forwards),
        commit=sum(each.commit for each in forwards),
        seconds=sum(each.seconds for each in completions),
        answers=[each.text or "" for each in completions],
    )


def cached_measure(path: Path, name: str, loaded: LoadedModel, split: Split, count: int, params: SamplingParams) -> Row:
    """Return the row stored at `path`, or measure and store it; so an interrupted demo goes on where it stopped."""
    if path.is_file():
        return Row(**json.loads(path.read_text(encoding="utf-8")))
    row = measure(name, loaded, split, count, params)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(asdict(row)), encoding="utf-8")
    aside.replace(path)
    return row


def side_by_side(rows: Sequence[Row], split: Split, shown: int) -> list[tuple[Item, list[tuple[str, str]]]]:
    """Return the first items of a split with each row's answer."""
    chosen = [row for row in rows if row.split == split]
    examples = items(split, min(shown, *(row.count for row in chosen)), EVALUATION_SEED)
    return [(item, [(row.name, row.answers[index]) for row in chosen]) for index, item in enumerate(examples)]
