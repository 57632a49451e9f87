"""Architectural facts of a decoder-only transformer; nothing about files, training or decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RopeType = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding.

    Attributes:
        theta: base of the frequencies.
        kind: "default" (none), "linear" (positions divided by `factor`), "llama3" (band-wise scaling) or "yarn".
        factor: context extension factor (linear, llama3, yarn).
        low_freq_factor, high_freq_factor: band limits of llama3, in wavelengths per original context.
        original_max_positions: context length before scaling, tokens (llama3, yarn).
        beta_fast, beta_slow: band limits of yarn, in turns per original context.
        attention_factor: what yarn multiplies the rotated queries and keys by; None computes it.
        mscale, mscale_all_dim: yarn, where both are given: the two strengths whose ratio is the attention factor.
        truncate: whether yarn rounds its band limits to whole pairs.
        partial: share of the head dimension that is rotated (the first part), in (0, 1].
    """

    theta: float = 10_000.0
    kind: RopeType = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    partial: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEConfig:
    """Mixture of experts in the feed-forward branch.

    Attributes:
        num_experts, experts_per_token, expert_size: E; K; inner width of a routed expert.
        score: how router logits become scores, over each expert by itself or over all.
        groups, groups_kept: experts are chosen inside the best groups; 1 group: no limit.
        expert_bias: a bias is added to the scores for the choice.
        normalise: the weights of a token's experts sum to `scaling`.
        scaling: factor on the weights.
        shared_experts, shared_size: experts that every token passes, and the inner width of each.
        dense_layers: layers with a plain feed-forward instead.
    """

    num_experts: int
    experts_per_token: int
    expert_size: int
    score: Literal["sigmoid", "softmax"]
    groups: int = 1
    groups_kept: int = 1
    expert_bias: bool = False
    normalise: bool = True
    scaling: float = 1.0
    shared_experts: int = 0
    shared_size: int = 0
    dense_layers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape and options of `Transformer`.

    Attributes:
        vocab_size: rows of the embedding (may exceed the tokenizer's length: padding rows).
        hidden_size, intermediate_size: D and the inner width of the MLP.
        num_layers, num_heads, num_kv_heads, head_dim: decoder layers; query heads; key/value heads; width of a head.
        norm_eps: epsilon of every RMSNorm.
        rope: rotary position embedding.
        max_positions: longest context, tokens.
        qkv_bias, output_bias, mlp_bias: whether these linear maps have a bias.
        qk_norm: RMSNorm on each query and key head before the rotation (Qwen3).
        tied_embeddings: the head is the embedding matrix.
        moe: mixture of experts; None: every layer is dense.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeConfig
    max_positions: int
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = False
    moe: MoEConfig | None = None
