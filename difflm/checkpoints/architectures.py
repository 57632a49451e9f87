"""Published architectures by name, for recipes and estimates: facts only, nothing is downloaded.

The values are those of the released config.json files; the parameter counts they give are checked in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from difflm.checkpoints.families import model_config
from difflm.checkpoints.source import parameter_shapes
from difflm.errors import ConfigError
from difflm.models.config import ModelConfig
from difflm.models.transformer import Transformer

_SMOLLM2_135M: Mapping[str, Any] = {
    "model_type": "llama",
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100_000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_QWEN3_0_6B: Mapping[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": True,
}
_LLAMA_3_2_1B: Mapping[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": True,
}
_LING_2_0: Mapping[str, Any] = {
    "model_type": "bailing_moe",
    "vocab_size": 157_184,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 600_000.0,
    "partial_rotary_factor": 0.5,
    "rotary_dim": 64,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": False,
    "use_qkv_bias": False,
    "use_bias": False,
    "use_qk_norm": True,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "score_function": "sigmoid",
    "router_dtype": "fp32",
    "moe_router_enable_expert_bias": True,
}
_LING_MINI_2_0: Mapping[str, Any] = {
    **_LING_2_0,
    "num_hidden_layers": 20,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "moe_intermediate_size": 512,
    "num_attention_heads": 16,
}
_LING_FLASH_2_0: Mapping[str, Any] = {
    **_LING_2_0,
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 9216,
    "moe_intermediate_size": 1024,
    "num_attention_heads": 32,
}
# Same network, other class and training; the released config.json of Ling-flash-2.0 was not at hand: its shapes are
# those of LLaDA2.0-flash, which was made from it.
_LLADA2: Mapping[str, Any] = {"model_type": "llada2_moe", "mask_token_id": 156_895}

ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "smollm2-135m": _SMOLLM2_135M,
    "qwen3-0.6b": _QWEN3_0_6B,
    "llama-3.2-1b": _LLAMA_3_2_1B,
    "ling-mini-2.0": _LING_MINI_2_0,
    "ling-flash-2.0": _LING_FLASH_2_0,
    "llada2.0-mini": {**_LING_MINI_2_0, **_LLADA2},
    "llada2.0-flash": {**_LING_FLASH_2_0, **_LLADA2},
}
"""config.json of each architecture, the fields that decide about the network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCounts:
    """Numbers of a model, biases of experts included.

    Attributes:
        total: all of them, tied ones once.
        active: those that a token meets: all but the routed experts that it is not sent to.
        embedding: of the embedding, and of the head where it is a matrix of its own.
    """

    total: int
    active: int
    embedding: int


def architecture_fields(name: str) -> dict[str, Any]:
    """Return the config.json fields of a published architecture.

    Args:
        name: one of `ARCHITECTURES`, in any case.

    Raises:
        ConfigError: no such name.
    """
    if name.lower() not in ARCHITECTURES:
        raise ConfigError(f"architecture is {name!r}; expected one of {', '.join(ARCHITECTURES)}")
    return dict(ARCHITECTURES[name.lower()])


def architecture(name: str) -> ModelConfig:
    """Return the architecture of a published model.

    Args:
        name: one of `ARCHITECTURES`, in any case.

    Raises:
        ConfigError: no such name.
    """
    return model_config(architecture_fields(name), name)


def parameter_counts(config: ModelConfig) -> ParameterCounts:
    """Return how many numbers a model of an architecture has; allocates nothing."""
    sizes = {name: math.prod(shape) for name, shape in parameter_shapes(config).items()}
    total = sum(sizes.values())
    idle = 0
    if config.moe is not None:
        share = 1 - config.moe.experts_per_token / config.moe.num_experts
        idle = round(share * sum(size for name, size in sizes.items() if ".mlp.experts." in name))
    embedding = sum(sizes.get(name, 0) for name in ("embedding.weight", "head.weight"))
    return ParameterCounts(total=total, active=total - idle, embedding=embedding)


def meta_model(name: str) -> Transformer:
    """Return a published model on the meta device: every shape, no memory.

    Args:
        name: one of `ARCHITECTURES`, in any case.

    Raises:
        ConfigError: no such name.
    """
    with torch.device("meta"):
        return Transformer(architecture(name))
