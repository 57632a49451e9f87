"""Supported model families: config.json <-> `ModelConfig`, and the tables of tensor names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from difflm.checkpoints.fields import Fields
from difflm.checkpoints.rules import GGUF_DENSE, GGUF_LLAMA, HF_DENSE, KeyRule
from difflm.errors import CheckpointError
from difflm.models.config import ModelConfig, RopeConfig

ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What distinguishes a family of checkpoints; the defaults are those of its transformers class.

    Attributes:
        name: `model_type` of config.json, `general.architecture` of GGUF.
        architecture: class name in `architectures`.
        always_qkv_bias: query, key and value have a bias and the output has none, whatever `attention_bias` says.
        reads_mlp_bias: `mlp_bias` is a field of this family.
        reads_sliding_window: the sliding-window fields are honoured by this family.
        qk_norm: RMSNorm on query and key heads.
        head_dim: width of a head where config.json is silent; None means hidden_size / num_attention_heads.
        max_positions: context length where config.json is silent, tokens.
        hf_rules: names of tensors in safetensors files.
        gguf_rules: names of tensors in GGUF files.
    """

    name: str
    architecture: str
    always_qkv_bias: bool = False
    reads_mlp_bias: bool = False
    reads_sliding_window: bool = True
    qk_norm: bool = False
    head_dim: int | None = None
    max_positions: int = 32_768
    hf_rules: tuple[KeyRule, ...] = HF_DENSE
    gguf_rules: tuple[KeyRule, ...] = GGUF_DENSE


FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        name="llama",
        architecture="LlamaForCausalLM",
        reads_mlp_bias=True,
        reads_sliding_window=False,
        max_positions=2048,
        gguf_rules=GGUF_LLAMA,
    ),
    "qwen2": Family(name="qwen2", architecture="Qwen2ForCausalLM", always_qkv_bias=True),
    "qwen3": Family(name="qwen3", architecture="Qwen3ForCausalLM", qk_norm=True, head_dim=128),
}


def find_family(raw: Mapping[str, Any], where: str) -> Family:
    """Return the family that `model_type` names.

    Raises:
        CheckpointError: `model_type` is absent or not supported.
    """
    name = raw.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise Fields(raw, where).error("model_type", "one of " + ", ".join(FAMILIES))
    return FAMILIES[name]


def model_config(raw: Mapping[str, Any], where: str) -> ModelConfig:
    """Return the architecture that a config.json describes.

    Args:
        raw: config.json, in the spelling of transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`).
        where: its file, for errors.

    Raises:
        CheckpointError: a field is absent or wrong, or names something that is not implemented (rope types,
            sliding windows, activations, quantised weights); the message names it.
    """
    family, fields = find_family(raw, where), Fields(raw, where)
    _refuse_unsupported(family, fields)
    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    num_kv_heads = fields.integer("num_key_value_heads", num_heads)
    head_dim = fields.integer("head_dim", family.head_dim or hidden_size // num_heads)
    if num_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", f"a divisor of num_attention_heads ({num_heads})")
    if head_dim % 2 or (raw.get("head_dim") is None and not family.head_dim and hidden_size % num_heads):
        raise fields.error("head_dim", f"an even width of a head (hidden_size is {hidden_size}, {num_heads} heads)")
    bias = fields.flag("attention_bias", False) and not family.always_qkv_bias
    return ModelConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=rope_config(raw, where),
        max_positions=fields.integer("max_position_embeddings", family.max_positions),
        qkv_bias=bias or family.always_qkv_bias,
        output_bias=bias,
        mlp_bias=family.reads_mlp_bias and fields.flag("mlp_bias", False),
        qk_norm=family.qk_norm,
        tied_embeddings=fields.flag("tie_word_embeddings", False),
    )


def rope_config(raw: Mapping[str, Any], where: str) -> RopeConfig:
    """Return the rotary embedding that a config.json describes, in either spelling.

    Raises:
        CheckpointError: the rope type is not implemented, or one of its fields is absent.
    """
    name = "rope_parameters" if raw.get("rope_parameters") is not None else "rope_scaling"
    scaling = raw.get(name) or {}
    if not isinstance(scaling, Mapping) or any(isinstance(each, Mapping) for each in scaling.values()):
        raise Fields(raw, where).error(name, "one flat object (rope parameters per layer type are not implemented)")
    merged = {"rope_theta": raw.get("rope_theta"), "partial_rotary_factor": raw.get("partial_rotary_factor")}
    merged |= {key: value for key, value in scaling.items() if value is not None}
    fields = Fields(merged, f"{where}: {name}")
    kind = merged.get("rope_type", merged.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise CheckpointError(f"{where}: {name}.rope_type is {kind!r}; implemented are {', '.join(ROPE_TYPES)}")
    if fields.number("partial_rotary_factor", 1.0) != 1.0:
        raise fields.error("partial_rotary_factor", "1.0 (this family rotates whole heads)")
    theta = fields.number("rope_theta", 10_000.0)
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, kind="linear", factor=fields.number("factor"))
    return RopeConfig(
        theta=theta,
        kind="llama3",
        factor=fields.number("factor"),
        low_freq_factor=fields.number("low_freq_factor"),
        high_freq_factor=fields.number("high_freq_factor"),
        original_max_positions=fields.integer("original_max_position_embeddings"),
    )


def hf_config(family: Family, config: ModelConfig) -> dict[str, Any]:
    """Return the config.json fields of an architecture, in the spelling that transformers 4 and 5 both read.

    Inverse of `model_config`.
    """
    fields: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.name,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied_embeddings,
    }
    if not family.always_qkv_bias:
        fields["attention_bias"] = config.qkv_bias
    if family.reads_mlp_bias:
        fields["mlp_bias"] = config.mlp_bias
    if family.reads_sliding_window:
        fields["use_sliding_window"] = False
    return fields | hf_rope(config.rope)


def hf_rope(rope: RopeConfig) -> dict[str, Any]:
    """Return `rope_theta` and `rope_scaling` of a rotary embedding."""
    scaling: dict[str, Any] | None = None
    if rope.kind != "default":
        scaling = {"rope_type": rope.kind, "factor": rope.factor}
    if scaling is not None and rope.kind == "llama3":
        scaling |= {
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_max_positions,
        }
    return {"rope_theta": rope.theta, "rope_scaling": scaling}


def updated_config(raw: Mapping[str, Any], config: ModelConfig, where: str) -> dict[str, Any]:
    """Return `raw` with the fields changed in which `config` differs from what `raw` says; the rest is carried."""
    family, before = find_family(raw, where), model_config(raw, where)
    updated = dict(raw)
    if config.rope != before.rope:
        for name in ("rope_parameters", "rope_theta", "rope_scaling"):
            updated.pop(name, None)
        updated |= hf_rope(config.rope)
    old, new = hf_config(family, before), hf_config(family, config)
    updated |= {name: value for name, value in new.items() if old[name] != value and not name.startswith("rope_")}
    assert model_config(updated, where) == config, "config.json cannot express the architecture"
    return updated


def _refuse_unsupported(family: Family, fields: Fields) -> None:
    raw = fields.raw
    if raw.get("quantization_config") is not None:
        raise CheckpointError(
            f"{fields.where}: quantization_config is set; quantised safetensors are not supported, "
            "use the original weights or a GGUF file"
        )
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise fields.error("hidden_act", "silu (no other activation is implemented)")
    if not family.reads_sliding_window:
        return
    num_layers = fields.integer("num_hidden_layers")
    kinds = raw.get("layer_types")
    if kinds is None:
        first = fields.integer("max_window_layers", 28, minimum=0)
        windowed = fields.flag("use_sliding_window", False) and raw.get("sliding_window", 4096) is not None
        if windowed and first < num_layers:
            raise fields.error("use_sliding_window", "false (sliding windows are not implemented)")
        return
    others = sorted({str(kind) for kind in kinds} - {"full_attention"}) if isinstance(kinds, list) else [str(kinds)]
    if others:
        raise CheckpointError(
            f"{fields.where}: layer_types contains {', '.join(others)}; only full_attention is implemented"
        )
