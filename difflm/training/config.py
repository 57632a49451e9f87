"""What a training run is: one tree of frozen dataclasses, the same fields in YAML, overrides and Python.

The tree says nothing about the model's parametrisation or mask token: the checkpoint records those.
Field constraints stand in the annotations and are enforced by `difflm.training.config_io.checked`, which
every way into a run passes; rules that join several fields are enforced on construction.
"Tokens" counts the real tokens of consumed rows, padding excluded, prompts included.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from difflm.errors import ConfigError
from difflm.training.config_data import DataConfig
from difflm.training.config_fields import STRICT, Count, NonEmpty, NonEmptyPath, Positive
from difflm.training.config_lora import LoRAConfig
from difflm.training.config_objective import (
    BlockDiffusionConfig,
    DraftingConfig,
    EmbeddingNoiseConfig,
    NextTokenConfig,
    ObjectiveConfig,
    PreferenceConfig,
    StageConfig,
)
from difflm.training.config_optimizer import LearningRateConfig, OptimizerConfig
from difflm.training.config_router import RouterConfig
from difflm.training.config_run import (
    CheckpointingConfig,
    NonFiniteConfig,
    SamplesConfig,
    TrackingConfig,
    ValidationConfig,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """A training run; `difflm.train(config)` executes it, `config.yaml` in its folder records it.

    Attributes:
        model: folder of a converted checkpoint (for next_token an AR one will do), or the id of one on the Hugging
            Face hub together with `revision`. No default.
        output: run folder. No default.
        data: rows. No default.
        curriculum: stages in order; the sum of their tokens is the length of the run. No default.
        objective: loss, chosen by its `kind`. Default block_diffusion.
        optimizer: AdamW or Muon.
        lr_schedule: learning rate over tokens.
        router: balance of a mixture of experts. Default off.
        lora: train low-rank pairs instead of the weights; null trains the weights. Default null.
        embedding_noise: noise on masked embeddings. Default off.
        validation: what is measured, and when.
        checkpoint: what is written, and when.
        nonfinite: what happens to a step that is not finite.
        samples: completions written during the run.
        tracking: boards beside metrics.jsonl.
        rows_per_batch: rows of one forward. Default 2.
        accumulation: forwards added up for one optimiser step. Default 1.
        revision: commit of `model` on the hub; null for a folder. Default null.
        rope_scaling: replaces the checkpoint's rope scaling, as in config.json, e.g. {rope_type: yarn, factor: 2.0};
            null keeps it. Default null.
        attention: "auto" (the fastest that works on the device), "split" (CPU), "portable", "flex" (CUDA) or "dense"
            (the reference). Default "auto".
        activation_checkpointing: recompute each layer in the backward pass: less memory, more time. Default false.
        recipe: name recorded in config.json and model card of every checkpoint; `difflm train` sets it to the
            recipe's name. Default null.
        seed: decides row order and noise. Default 0.
        device: torch device, e.g. "cpu" or "cuda". Default "cpu".
        dtype: "float32", or "bfloat16" (bf16 weights with an fp32 master copy). Default "float32".
        threads: CPU threads; null takes OMP_NUM_THREADS if that is set, else all cores this process may use.
            Default null.
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
    router: RouterConfig = field(default_factory=RouterConfig)
    lora: LoRAConfig | None = None
    embedding_noise: EmbeddingNoiseConfig = field(default_factory=EmbeddingNoiseConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointingConfig = field(default_factory=CheckpointingConfig)
    nonfinite: NonFiniteConfig = field(default_factory=NonFiniteConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    rows_per_batch: Positive = 2
    accumulation: Positive = 1
    revision: NonEmpty | None = None
    rope_scaling: dict[str, float | str | bool] | None = None
    attention: Literal["auto", "split", "portable", "flex", "dense"] = "auto"
    activation_checkpointing: bool = False
    recipe: str | None = None
    seed: Count = 0
    device: NonEmpty = "cpu"
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
        if self.embedding_noise.sigma and isinstance(self.objective, PreferenceConfig):
            raise ConfigError(
                f"train.embedding_noise.sigma: {self.embedding_noise.sigma} has no meaning for objective dpo, whose "
                "reference knows no such noise; set it to 0"
            )
        if self.lora is not None and self.router.bias_update_rate:
            raise ConfigError(
                f"train.router.bias_update_rate: {self.router.bias_update_rate} changes the base, which "
                "train.lora leaves as it is; set it to 0"
            )
        if self.lora is not None and self.lora.adapter_rows == "noisy":
            _check_gated(self)
        _check_draft_head(self)
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
    def final_stage(self) -> int:
        """Return the number of the first of the last stages that share the last block size."""
        sizes = self.block_sizes
        return next((index + 1 for index in reversed(range(len(sizes))) if sizes[index] != sizes[-1]), 0)

    @property
    def fill_multiple(self) -> int | None:
        """Return the multiple up to which documents are filled with EOS, tokens; None for no fill."""
        filled = self.data.fill == "eos" and not isinstance(self.objective, DraftingConfig)
        return self.block_sizes[-1] if filled else None

    @property
    def learning(self) -> OptimizerConfig:
        """Return the optimiser with everything that is frozen, the routers of `router.freeze` among it."""
        routers = ("*.router.weight",) if self.router.freeze else ()
        return replace(self.optimizer, freeze=(*self.optimizer.freeze, *routers))

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
    if isinstance(config.objective, DraftingConfig):
        if size == "row" or size >= length:
            raise ConfigError(
                f"{where}.block_size: {size} is no window, which is shorter than a row ({length} tokens); set the "
                "tokens that one forward drafts, e.g. 8"
            )
        return
    if size != "row" and length % size:
        lower = length // size * size
        advice = f"{lower} or {lower + size}" if lower else f"{size}"
        raise ConfigError(
            f"train.data.row_length: {length} is not divisible by the block size {size} of {where}; "
            f"set row_length to a multiple of {size}, e.g. {advice}"
        )


def _check_draft_head(config: TrainConfig) -> None:
    """Refuse a draft head where nothing is drafted."""
    lora = config.lora
    if lora is None or not lora.draft_head:
        return
    if lora.adapter_rows != "noisy" or not isinstance(config.objective, DraftingConfig):
        raise ConfigError(
            f"train.lora.draft_head: {lora.draft_head}, but there are no drafts to correct; set it to 0, or "
            "adapter_rows: noisy and objective.kind: drafting"
        )


def _check_gated(config: TrainConfig) -> None:
    """Refuse what an adapter for noisy rows alone cannot learn or do."""
    objective, field = config.objective, "train.lora.adapter_rows: 'noisy'"
    if isinstance(objective, NextTokenConfig):
        raise ConfigError(f"{field} has nothing to act on: next_token has no noisy rows; set it to 'all'")
    if not isinstance(objective, PreferenceConfig) and objective.ar_weight:
        raise ConfigError(
            f"train.objective.ar_weight: {objective.ar_weight}, but clean rows do not learn under {field}; set it to 0"
        )
    if config.samples.every_tokens:
        raise ConfigError(
            f"train.samples.every_tokens: {config.samples.every_tokens}, but under {field} the adapter drafts only and "
            "samples are not drawn; set it to 0"
        )
