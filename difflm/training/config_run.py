"""Sections of a training configuration that say what a run measures, keeps, reports and survives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from difflm.errors import ConfigError
from difflm.training.config_fields import STRICT, Count, NonEmpty, Positive, Share


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationConfig:
    """Fixed-noise NELBO as perplexity per token, and the AR perplexity of the same weights.

    Attributes:
        every_tokens: tokens between validations; 0 validates only at the start and the end. Default 0.
        rows: validation rows used, the first ones; 0 uses all. Default 32.
        rows_per_batch: rows of one validation forward. Default 4.
        block_sizes: block sizes of the NELBO, whatever the stage. Default [1, 4, 8, 32].
        draws: noise draws of each row; more draws, less variance. Default 1.
        seed: seed of the noise, the same at every validation and in every run. Default 0.
        autoregressive: also measure the AR perplexity. Default true.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    every_tokens: Count = 0
    rows: Count = 32
    rows_per_batch: Positive = 4
    block_sizes: tuple[Positive, ...] = (1, 4, 8, 32)
    draws: Positive = 1
    seed: Count = 0
    autoregressive: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointingConfig:
    """When checkpoints are written and which stay.

    Attributes:
        every_tokens: tokens between checkpoints; 0 writes only at the end (and when interrupted). Default 0.
        keep: newest checkpoints that stay resumable (with optimiser moments). Default 2.
        keep_best: checkpoints of the last stage's block size that stay for `merge`, those with the lowest
            validation perplexity. Default 4.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    every_tokens: Count = 0
    keep: Positive = 2
    keep_best: Count = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class NonFiniteConfig:
    """What happens when a step's loss or gradient is not a finite number; the optimiser is never touched by it.

    Attributes:
        action: "stop" writes a dump of the batch and ends the run; "skip" leaves the step out, dumps and counts it.
            Default "stop".
        budget: steps that may be skipped in the whole run ("skip" only), resumes included. Default 10.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    action: Literal["stop", "skip"] = "stop"
    budget: Positive = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesConfig:
    """Completions that a run writes of itself, with their tokens per forward (samples.jsonl and metrics.jsonl).

    Attributes:
        every_tokens: tokens between samples; 0 writes none. Default 0.
        prompts: what is completed. Default [].
        max_new_tokens: longest completion, tokens. Default 64.
        threshold: of acceptance, probability. Default 0.95.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    every_tokens: Count = 0
    prompts: tuple[NonEmpty, ...] = ()
    max_new_tokens: Positive = 64
    threshold: Share = 0.95

    def __post_init__(self) -> None:
        """Refuse samples without a prompt."""
        if self.every_tokens and not self.prompts:
            raise ConfigError(
                f"train.samples.prompts: empty, and samples are due every {self.every_tokens} tokens; "
                "give a prompt, or set every_tokens: 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingConfig:
    """Boards that receive the metrics beside metrics.jsonl; each is an optional package, none is used unless asked.

    Attributes:
        tensorboard: write event files into the run folder. Default false.
        wandb: send to Weights & Biases. Default false.
        trackio: write to trackio. Default false.
        project: name of the project on a board. Default "difflm".
        name: name of the run on a board; null takes the run folder's name. Default null.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    tensorboard: bool = False
    wandb: bool = False
    trackio: bool = False
    project: NonEmpty = "difflm"
    name: NonEmpty | None = None
