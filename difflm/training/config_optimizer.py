"""Sections `optimizer` and `lr_schedule` of a training configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from difflm.errors import ConfigError
from difflm.training.config_fields import STRICT, AboveZero, Count, NonEmpty, NonNegative, OpenShare, Share, UpToOne


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterGroupConfig:
    """Parameters that learn differently.

    Attributes:
        pattern: of parameter names, with * and ?, e.g. "layers.0.*" or "*.mlp.*"; the first group that matches a
            parameter counts. No default.
        lr_scale: factor on the learning rate. Default 1.
        weight_decay: instead of the optimiser's; null keeps that. Default null.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    pattern: NonEmpty
    lr_scale: NonNegative = 1.0
    weight_decay: NonNegative | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW, or Muon for the matrices inside the layers with AdamW for everything else.

    Attributes:
        kind: "adamw" or "muon". Default "adamw".
        learning_rate: peak of the schedule, per step. Default 1e-4.
        muon_learning_rate: peak for the matrices that Muon updates; null takes `learning_rate`. Default null.
        muon_momentum: of Muon's (Nesterov) momentum. Default 0.95.
        betas: decay rates of the two moments, each in [0, 1). Default [0.9, 0.95].
        eps: added to the root of the second moment. Default 1e-8.
        weight_decay: decoupled, on matrices only (not on norms, biases, embeddings). Default 0.
        max_grad_norm: clip the gradient's global L2 norm to this; 0 disables. Default 1.
        mask_row_lr_scale: factor on the update of the mask token's embedding row. Default 1.
        layer_decay: factor on the learning rate for each layer below the last one; embeddings count as the layer
            below the first. Default 1.
        groups: parameters with a learning rate or decay of their own, by name. Default [].
        freeze: patterns of parameters that do not learn. Default [].
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: AboveZero = 1e-4
    muon_learning_rate: AboveZero | None = None
    muon_momentum: OpenShare = 0.95
    betas: tuple[OpenShare, OpenShare] = (0.9, 0.95)
    eps: AboveZero = 1e-8
    weight_decay: NonNegative = 0.0
    max_grad_norm: NonNegative = 1.0
    mask_row_lr_scale: NonNegative = 1.0
    layer_decay: UpToOne = 1.0
    groups: tuple[ParameterGroupConfig, ...] = ()
    freeze: tuple[NonEmpty, ...] = ()

    def __post_init__(self) -> None:
        """Refuse settings of Muon without Muon."""
        if self.kind == "adamw" and self.muon_learning_rate is not None:
            raise ConfigError(
                f"train.optimizer.muon_learning_rate: {self.muon_learning_rate} has no meaning for kind 'adamw'; "
                "set kind: muon"
            )


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
