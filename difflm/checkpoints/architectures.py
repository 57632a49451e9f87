"""Published architectures by name, for recipes and estimates: facts only, nothing is downloaded.

The values are those of the released config.json files; the parameter counts they give are checked in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from difflm.checkpoints.families import model_config
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

ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "smollm2-135m": _SMOLLM2_135M,
    "qwen3-0.6b": _QWEN3_0_6B,
    "llama-3.2-1b": _LLAMA_3_2_1B,
}
"""config.json of each architecture, the fields that decide about the network."""


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


def meta_model(name: str) -> Transformer:
    """Return a published model on the meta device: every shape, no memory.

    Args:
        name: one of `ARCHITECTURES`, in any case.

    Raises:
        ConfigError: no such name.
    """
    with torch.device("meta"):
        return Transformer(architecture(name))
