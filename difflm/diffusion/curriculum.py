"""The warm-up / stable / decay curriculum of the block size, as data.

Source: LLaDA2.0 (arXiv:2512.15745) section 4.1: 1 > 4 > 32 > 64 > L, stable at L, then step by step down to 32.
It schedules the block size only; the learning rate has a schedule of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from difflm.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the curriculum.

    Attributes:
        block_size: S in tokens; None is the whole row (the stable phase, no clean half).
        tokens: length of the stage, in training tokens without padding (clean tokens, counted once).
    """

    block_size: int | None
    tokens: int

    def __post_init__(self) -> None:
        """Refuse empty stages."""
        if self.tokens < 1:
            raise ConfigError(f"curriculum.tokens: {self.tokens} is below 1; give the stage's length in tokens")
        if self.block_size is not None and self.block_size < 1:
            raise ConfigError(f"curriculum.block_size: {self.block_size} is below 1; give tokens, or 'row'")


def lookahead_at(tokens_seen: int, *, annealing_tokens: int, block_size: int) -> int | None:
    """Return how far a row sees ahead inside its block while a causal model is annealed to a bidirectional one.

    It grows linearly from 0 (causal, what an AR model has learnt) to the block; None when the annealing is over.

    Args:
        tokens_seen: training tokens before the step.
        annealing_tokens: length of the annealing, tokens; 0 is none.
        block_size: S of the step, tokens.

    Source: attention-mask annealing of DiffuLLaMA (arXiv:2410.17891); deviation: the view widens by distance instead
        of by opening random entries, so that every step has one exact mask.
    """
    if tokens_seen >= annealing_tokens:
        return None
    return block_size * tokens_seen // annealing_tokens


@dataclass(frozen=True, slots=True)
class BlockCurriculum:
    """Stages in order; the run ends with the last one."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        """Refuse an empty curriculum."""
        if not self.stages:
            raise ConfigError("curriculum: no stages; give at least one {block_size, tokens}")

    @property
    def total_tokens(self) -> int:
        """Length of the run in tokens."""
        return sum(stage.tokens for stage in self.stages)

    def stage_at(self, tokens_seen: int) -> int:
        """Return the index of the stage in which the step that starts after `tokens_seen` tokens falls."""
        for index, stage in enumerate(self.stages):
            if tokens_seen < stage.tokens:
                return index
            tokens_seen -= stage.tokens
        return len(self.stages) - 1
