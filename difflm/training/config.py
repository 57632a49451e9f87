"""What a training run is: one tree of frozen dataclasses, the same fields in YAML, overrides and Python.

The tree says nothing about the model's parametrisation or mask token: the checkpoint records those.
Field constraints stand in the annotations and are enforced by `difflm.training.config_io.checked`, which
every way into a run passes; rules that join several fields are enforced on construction.
"Tokens" counts the real tokens of consumed rows, padding excluded, prompts included.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from difflm.errors import ConfigError
from difflm.types import BlockOrigin

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _not_empty(value: object) -> object:
    if value == "":
        raise ValueError("a path, not empty")
    return value


NonEmptyPath = Annotated[Path, BeforeValidator(_not_empty)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
OpenShare = Annotated[float, Field(ge=0.0, lt=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
AboveZero = Annotated[float, Field(gt=0.0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Where rows come from and how they are packed.

    Attributes:
        paths: training files, folders or glob patterns (JSONL with `text` or `prompt` + `completion`; plain text).
            No default.
        format: "auto" (by name and content), "jsonl" or "text". Default "auto".
        row_length: L, tokens in a packed row; every stage's block size divides it. Default 256.
        overlong: a prompt + completion document longer than a row is left out and counted ("drop"), or an error
            ("refuse"). Longer plain text is cut into rows. Default "drop".
        fill: "eos" repeats EOS after each prompt + completion document up to a multiple of the last stage's
            block size, as a part of the loss, so that its last block looks as it does when decoding; "none"
            ends each document with its one EOS. Plain-text documents are never filled. Default "eos".
        validation_paths: files with the validation documents; not together with `validation_fraction`. Default none.
        validation_fraction: share of the documents held out by a hash of their content. Default 0.
        split_seed: seed of that hash, apart from the run's seed so that runs share one split. Default 0.
        shuffle: new order of the rows in each epoch, from (seed, epoch); otherwise file order. Default true.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    paths: Annotated[tuple[NonEmptyPath, ...], Field(min_length=1)]
    format: Literal["auto", "jsonl", "text"] = "auto"
    row_length: Annotated[int, Field(ge=2)] = 256
    overlong: Literal["drop", "refuse"] = "drop"
    fill: Literal["eos", "none"] = "eos"
    validation_paths: tuple[NonEmptyPath, ...] = ()
    validation_fraction: OpenShare = 0.0
    split_seed: Count = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        """Refuse two sources of validation documents."""
        if self.validation_paths and self.validation_fraction > 0:
            raise ConfigError(
                f"train.data.validation_fraction: {self.validation_fraction} together with validation_paths; "
                "set one of the two (validation_fraction: 0 uses the files)"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDiffusionConfig:
    """The masked-diffusion loss: Eq. 1 (blocks), Eq. 2 (one block covers the row), Eq. 5 (prompt + completion).

    Attributes:
        kind: "block_diffusion".
        noise: "exact_count" masks k of a block's n trainable positions, k uniform; "bernoulli" masks each with
            probability t. Default "exact_count".
        weighting: "elbo" (n/k or 1/t, divided by trainable tokens) or "uniform" (divided by masked tokens).
            Default "elbo".
        time_per: positions that share one draw of k or t: a "block" (stratified over a row's blocks) or a
            "sequence" (document). Default "block".
        schedule: mask probability over t, bernoulli only: "linear" (t) or "cosine". Default "linear".
        bandwidth: [low, high], band of mask rates that are drawn, bernoulli only, 0 <= low < high <= 1.
            Default [0, 1].
        complementary: train each row twice, the second time with the other trainable positions masked.
            Default false.
        ar_weight: coefficient of the next-token loss on the clean stream (needs a checkpoint with
            clean_attention "causal"). Default 0.
        min_masks: least masked positions of a block, bernoulli with uniform weighting only (it would bias
            the ELBO). Default 0.
        suppress_mask: score with MASK at probability 0, as decoding does, instead of raw logits. Default false.
        block_origin: blocks start anew in each "document" or are counted along the "row" (Eq. 3 as printed).
            Default "document".
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    kind: Literal["block_diffusion"] = "block_diffusion"
    noise: Literal["exact_count", "bernoulli"] = "exact_count"
    weighting: Literal["elbo", "uniform"] = "elbo"
    time_per: Literal["block", "sequence"] = "block"
    schedule: Literal["linear", "cosine"] = "linear"
    bandwidth: tuple[Share, Share] = (0.0, 1.0)
    complementary: bool = False
    ar_weight: NonNegative = 0.0
    min_masks: Count = 0
    suppress_mask: bool = False
    block_origin: BlockOrigin = "document"

    def __post_init__(self) -> None:
        """Refuse combinations that are undefined or biased."""
        low, high = self.bandwidth
        if low >= high:
            raise ConfigError(f"train.objective.bandwidth: [{low}, {high}] is empty; low must be below high")
        if self.noise == "exact_count" and (self.bandwidth != (0.0, 1.0) or self.schedule != "linear"):
            field_name = "bandwidth" if self.bandwidth != (0.0, 1.0) else "schedule"
            value = [low, high] if field_name == "bandwidth" else self.schedule
            raise ConfigError(
                f"train.objective.{field_name}: {value} has no meaning for noise 'exact_count', which draws counts; "
                "set noise: bernoulli"
            )
        if self.min_masks and (self.weighting == "elbo" or self.noise == "exact_count"):
            raise ConfigError(
                f"train.objective.min_masks: {self.min_masks} needs noise: bernoulli and weighting: uniform "
                "(forced masks bias the ELBO; exact_count never leaves a block without a mask); set it to 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class NextTokenConfig:
    """Next-token prediction: the AR control, and a sanity check of a conversion.

    Attributes:
        kind: "next_token".
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    kind: Literal["next_token"] = "next_token"


ObjectiveConfig = Annotated[BlockDiffusionConfig | NextTokenConfig, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """One step of the block-size ladder.

    Attributes:
        tokens: length of the stage, tokens. No default.
        block_size: tokens in a block, or "row" for the whole row (no clean half); absent for next_token only.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    tokens: Positive
    block_size: Positive | Literal["row"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW.

    Attributes:
        learning_rate: peak of the schedule, per step. Default 1e-4.
        betas: decay rates of the two moments, each in [0, 1). Default [0.9, 0.95].
        eps: added to the root of the second moment. Default 1e-8.
        weight_decay: decoupled, on matrices only (not on norms, biases, embeddings). Default 0.
        max_grad_norm: clip the gradient's global L2 norm to this; 0 disables. Default 1.
        mask_row_lr_scale: factor on the update of the mask token's embedding row. Default 1.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    learning_rate: AboveZero = 1e-4
    betas: tuple[OpenShare, OpenShare] = (0.9, 0.95)
    eps: AboveZero = 1e-8
    weight_decay: NonNegative = 0.0
    max_grad_norm: NonNegative = 1.0
    mask_row_lr_scale: NonNegative = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRateConfig:
    """Learning rate over the run's tokens, independent of the block-size ladder.

    Attributes:
        kind: after the warm-up "constant", "linear" or "cosine" down to `final_ratio`, or "wsd": constant, then
            linear down to `final_ratio` over the last `decay_fraction` of the run. Default "wsd".
        warmup_tokens: linear rise from 0, tokens; not together with `warmup_fraction`. Default 0.
        warmup_fraction: the same as a share of the run. Default 0.
        decay_fraction: share of the run ("wsd" only). Default 0.2.
        final_ratio: last learning rate as a share of the peak (unused by "constant"). Default 0.1.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    kind: Literal["constant", "linear", "cosine", "wsd"] = "wsd"
    warmup_tokens: Count = 0
    warmup_fraction: OpenShare = 0.0
    decay_fraction: Share = 0.2
    final_ratio: Share = 0.1

    def __post_init__(self) -> None:
        """Refuse two lengths of the warm-up, and parts that overlap."""
        if self.warmup_tokens and self.warmup_fraction:
            raise ConfigError(
                f"train.lr_schedule.warmup_fraction: {self.warmup_fraction} together with warmup_tokens "
                f"{self.warmup_tokens}; set one of the two"
            )
        if self.kind == "wsd" and self.warmup_fraction + self.decay_fraction > 1:
            raise ConfigError(
                f"train.lr_schedule.decay_fraction: {self.decay_fraction} and warmup_fraction {self.warmup_fraction} "
                "overlap; their sum must be at most 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingNoiseConfig:
    """Gaussian noise on the embedding layer's output at masked positions, in training only (report, section 7.1).

    Attributes:
        sigma: standard deviation at the start, relative to the RMS of the embedding table; 0 disables. Default 0.
        stages: sigma falls linearly to 0 over the tokens of this many first stages. Default 1.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    sigma: NonNegative = 0.0
    stages: Positive = 1


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
        keep: newest checkpoints that stay. Default 2.
        keep_best: checkpoints of the last stage's block size that stay for `merge`, those with the lowest
            validation perplexity. Default 4.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    every_tokens: Count = 0
    keep: Positive = 2
    keep_best: Count = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """A training run; `difflm.train(config)` executes it, `config.yaml` in its folder records it.

    Attributes:
        model: folder of a converted checkpoint (for next_token an AR one will do). No default.
        output: run folder. No default.
        data: rows. No default.
        curriculum: stages in order; the sum of their tokens is the length of the run. No default.
        objective: loss, chosen by its `kind`. Default block_diffusion.
        optimizer: AdamW.
        lr_schedule: learning rate over tokens.
        embedding_noise: noise on masked embeddings. Default off.
        validation: what is measured, and when.
        checkpoint: what is written, and when.
        rows_per_batch: rows of one forward. Default 2.
        accumulation: forwards added up for one optimiser step. Default 1.
        recipe: name recorded in config.json and model card of every checkpoint; `difflm train` sets it to the
            recipe's name. Default null.
        seed: decides row order and noise. Default 0.
        device: torch device, e.g. "cpu" or "cuda". Default "cpu".
        dtype: "float32", or "bfloat16" (bf16 weights with an fp32 master copy). Default "float32".
        threads: CPU threads; null takes all cores this process may use. Default null.
        head_chunk_rows: masked positions that pass the head and the loss at once. Default 512.
        log_every: optimiser steps between lines of metrics.jsonl. Default 1.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    model: NonEmptyPath
    output: NonEmptyPath
    data: DataConfig
    curriculum: Annotated[tuple[StageConfig, ...], Field(min_length=1)]
    objective: ObjectiveConfig = field(default_factory=BlockDiffusionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lr_schedule: LearningRateConfig = field(default_factory=LearningRateConfig)
    embedding_noise: EmbeddingNoiseConfig = field(default_factory=EmbeddingNoiseConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointingConfig = field(default_factory=CheckpointingConfig)
    rows_per_batch: Positive = 2
    accumulation: Positive = 1
    recipe: str | None = None
    seed: Count = 0
    device: Annotated[str, Field(min_length=1)] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    head_chunk_rows: Positive = 512
    log_every: Positive = 1

    def __post_init__(self) -> None:
        """Refuse stages that do not fit the objective, the row length or the embedding noise."""
        for number, stage in enumerate(self.curriculum):
            _check_stage(stage, where=f"train.curriculum[{number}]", config=self)
        if self.embedding_noise.sigma and self.embedding_noise.stages > len(self.curriculum):
            raise ConfigError(
                f"train.embedding_noise.stages: {self.embedding_noise.stages} is more than the "
                f"{len(self.curriculum)} stages of train.curriculum; lower it"
            )
        if self.lr_schedule.warmup_tokens > self.total_tokens:
            raise ConfigError(
                f"train.lr_schedule.warmup_tokens: {self.lr_schedule.warmup_tokens} is more than the run's "
                f"{self.total_tokens} tokens; lower it"
            )

    @property
    def total_tokens(self) -> int:
        """Return the length of the run, tokens."""
        return sum(stage.tokens for stage in self.curriculum)

    @property
    def block_sizes(self) -> tuple[int | None, ...]:
        """Return each stage's block size in tokens, with "row" resolved; None for next_token."""
        return tuple(
            self.data.row_length if stage.block_size == "row" else stage.block_size for stage in self.curriculum
        )

    @property
    def fill_multiple(self) -> int | None:
        """Return the multiple up to which documents are filled with EOS, tokens; None for no fill."""
        return self.block_sizes[-1] if self.data.fill == "eos" else None

    @property
    def embedding_noise_tokens(self) -> int:
        """Return after how many tokens the embedding noise has reached 0."""
        return sum(stage.tokens for stage in self.curriculum[: self.embedding_noise.stages])


def _check_stage(stage: StageConfig, *, where: str, config: TrainConfig) -> None:
    size, length = stage.block_size, config.data.row_length
    if isinstance(config.objective, NextTokenConfig):
        if size is not None:
            raise ConfigError(f"{where}.block_size: {size!r} has no meaning for objective next_token; leave it out")
        return
    if size is None:
        raise ConfigError(f"{where}.block_size: missing; set the tokens of a block, or 'row' for the whole row")
    if size != "row" and length % size:
        lower = length // size * size
        advice = f"{lower} or {lower + size}" if lower else f"{size}"
        raise ConfigError(
            f"train.data.row_length: {length} is not divisible by the block size {size} of {where}; "
            f"set row_length to a multiple of {size}, e.g. {advice}"
        )
