"""Which checkpoints of a run are merged, and with which weights: the best, a window of the last ones, or an average.

Source: LLaDA2.0 report, section 7 (top k by validation perplexity, uniform mean; k is not given there); WSM,
arXiv:2507.17634 (a mean over a window of the stable phase stands in for learning-rate decay).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from difflm.errors import CheckpointError, ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A checkpoint of a run's last block size.

    Attributes:
        folder: of the checkpoint.
        step: optimiser steps done.
        tokens: training tokens done.
        perplexity: validation perplexity at the last block size (AR perplexity of a next-token run); None if the run
            did not measure it there.
    """

    folder: Path
    step: int
    tokens: int
    perplexity: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a method needs to know about a run.

    Attributes:
        folder: of the run, for errors.
        block_size: last block size, tokens; None for next-token training.
        every_tokens: tokens between checkpoints; 0: only at the end.
        last_tokens: length of the part of the run at that block size, tokens.
    """

    folder: Path
    block_size: int | None
    every_tokens: int
    last_tokens: int


class MergeMethod(Protocol):
    """A choice of checkpoints and weights."""

    @property
    def name(self) -> str:
        """Return the name of the method, as on the command line."""
        ...

    def members(self, candidates: Sequence[Candidate], run: RunFacts) -> list[tuple[Candidate, float]]:
        """Return the members and their weights, which add up to 1.

        Args:
            candidates: checkpoints of the last block size, oldest first; at least one.
            run: where they are from.

        Raises:
            CheckpointError: the checkpoints do not suffice; the message names what to change.
        """
        ...


@dataclass(frozen=True, slots=True)
class Best:
    """The uniform mean of the checkpoints with the lowest validation perplexity; fewer if the run has fewer.

    Attributes:
        count: k.
    """

    count: int = 4
    name: str = "best"

    def __post_init__(self) -> None:
        """Refuse a mean of nothing."""
        _require_count("best", self.count)

    def members(self, candidates: Sequence[Candidate], run: RunFacts) -> list[tuple[Candidate, float]]:
        """Return the best first."""
        validated = [(each.perplexity, each.step, each) for each in candidates if each.perplexity is not None]
        ranked = sorted((one, step, each) for one, step, each in validated if not math.isnan(one))
        if not ranked:
            raise CheckpointError(
                f"{run.folder}: no validated checkpoint of the final block size; train with validation data, or name "
                "checkpoints"
            )
        chosen = [each for _, _, each in ranked[: self.count]]
        return [(each, 1.0 / len(chosen)) for each in chosen]


@dataclass(frozen=True, slots=True)
class Window:
    """A mean of the last checkpoints, none left out between them (WSM).

    A mean of checkpoints is a weighted sum of the updates between them; the weight of each update is the learning-rate
    decay that the mean stands in for. The uniform mean is a linear decay over the window.

    Attributes:
        count: checkpoints of the window.
        decay: "linear" (uniform weights), "cosine" or "sqrt" (1 - sqrt of the share of the window that is done).
    """

    count: int = 4
    decay: Literal["linear", "cosine", "sqrt"] = "linear"
    name: str = "window"

    def __post_init__(self) -> None:
        """Refuse a mean of nothing."""
        _require_count("window", self.count)

    def members(self, candidates: Sequence[Candidate], run: RunFacts) -> list[tuple[Candidate, float]]:
        """Return the window, oldest first."""
        unbroken = [candidates[-1]]
        for each in reversed(candidates[:-1]):
            if len(unbroken) == self.count or _is_gap(each, unbroken[0], run.every_tokens):
                break
            unbroken.insert(0, each)
        if len(unbroken) < self.count:
            raise CheckpointError(_too_few(len(unbroken), self.count, run))
        return list(zip(unbroken, decay_weights(self.count, self.decay), strict=True))


@dataclass(frozen=True, slots=True)
class Ema:
    """The exponential moving average over the saved checkpoints, oldest first: mean <- d mean + (1 - d) checkpoint.

    It starts as the oldest checkpoint. Offline: an average over every training step would need a second copy of the
    weights during the run, and is not the same. For comparison with the other methods.

    Attributes:
        decay: d, in [0, 1).
    """

    decay: float = 0.7
    name: str = "ema"

    def __post_init__(self) -> None:
        """Refuse a decay that is none."""
        if not 0.0 <= self.decay < 1.0:
            raise ConfigError(f"decay: {self.decay} is not in [0, 1); give the share that the average keeps")

    def members(self, candidates: Sequence[Candidate], run: RunFacts) -> list[tuple[Candidate, float]]:
        """Return all candidates that have a share, oldest first."""
        last = len(candidates) - 1
        shares = [self.decay ** (last - index) * (1.0 - self.decay if index else 1.0) for index in range(last + 1)]
        return [(each, share) for each, share in zip(candidates, shares, strict=True) if share]


def decay_weights(count: int, decay: Literal["linear", "cosine", "sqrt"]) -> list[float]:
    """Return weights of `count` checkpoints whose mean weighs the updates between them as a decay would.

    With u_i the weight of the update before checkpoint i (u_0 = 1, falling towards 0 after the last), checkpoint i
    gets u_i - u_(i+1): the checkpoints' mean is the first one plus the sum of u_i times the i-th update.

    Args:
        count: checkpoints.
        decay: shape of u over the share i / count.

    Source: arXiv:2507.17634, the theorem that joins merging weights and gradient decay.
    """
    if decay == "linear":
        return [1.0 / count] * count
    shapes = {
        "cosine": lambda share: 0.5 + 0.5 * math.cos(math.pi * share),
        "sqrt": lambda share: 1.0 - math.sqrt(share),
    }
    updates = [shapes[decay](index / count) for index in range(count)] + [0.0]
    return [here - after for here, after in itertools.pairwise(updates)]


def _require_count(field: str, count: int) -> None:
    if count < 1:
        raise ConfigError(f"{field}: {count} is below 1; give the number of checkpoints to average")


def _is_gap(older: Candidate, newer: Candidate, every: int) -> bool:
    """Return whether a checkpoint between two was deleted: the run saves where it crosses a multiple of `every`."""
    if not every or newer.step - older.step <= 1:
        return False
    return newer.tokens // every - older.tokens // every > 1


def _too_few(found: int, wanted: int, run: RunFacts) -> str:
    size = "the run" if run.block_size is None else f"block size {run.block_size}"
    told = f"{run.folder}: window of {wanted}, but only the last {found} checkpoints of {size} are there without a gap"
    saved = run.last_tokens // run.every_tokens if run.every_tokens else 1
    if saved < wanted:
        field = f"checkpoint.every_tokens (it is {run.every_tokens}, the last part has {run.last_tokens} tokens)"
        return f"{told}; lower {field} for the next run, or merge a window of {found}"
    return f"{told}; raise checkpoint.keep to {wanted} for the next run, or merge a window of {found}"
