"""Supported model families: config.json <-> `ModelConfig`, and the tables of tensor names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from difflm.checkpoints.fields import Fields
from difflm.checkpoints.moe_fields import LING_CONSTANTS, MTP_FIELDS, ExpertFields, hf_experts, moe_config
from difflm.checkpoints.rope_fields import ROPE_FIELDS, hf_rope, longest_context, rope_config
from difflm.checkpoints.rules import (
    GGUF_DENSE,
    GGUF_LLAMA,
    HF_DENSE,
    HF_LING,
    HF_LING_STACKED,
    HF_QWEN3_MOE,
    KeyRule,
)
from difflm.errors import CheckpointError
from difflm.models.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What distinguishes a family of checkpoints; the defaults are those of its transformers class.

    Attributes:
        name: `model_type` of config.json, `general.architecture` of GGUF.
        architecture: class name in `architectures`.
        attention_bias: whether `attention_bias` decides about the biases of attention ("field"), or query, key and
            value always have one and the output none ("qkv"), or there is none ("none"), whatever that field says;
            `use_qkv_bias` and `use_bias` decide in "ling".
        reads_mlp_bias: `mlp_bias` is a field of this family.
        sliding_window: which fields switch a sliding window on: none, those of Qwen, or `sliding_window` alone, whose
            absence means 4096 (Mistral).
        qk_norm: RMSNorm on query and key heads (experts "ling": where `use_qk_norm` is silent).
        experts: which fields describe the mixture of experts; "ling" also names biases, norms and rotation its own way.
        head_dim: width of a head where config.json is silent; None means hidden_size / num_attention_heads.
        max_positions: context length where config.json is silent, tokens.
        hf_rules: names of tensors in safetensors files.
        gguf_rules: names of tensors in GGUF files; None where GGUF has no architecture of this name.
        diffusion: name of the family that a converted checkpoint belongs to; None keeps this one.
        constants: fields that every release has alike, which do not decide about the network; written where absent.
    """

    name: str
    architecture: str
    attention_bias: Literal["field", "qkv", "none", "ling"] = "field"
    reads_mlp_bias: bool = False
    sliding_window: Literal["none", "qwen", "mistral"] = "qwen"
    qk_norm: bool = False
    experts: ExpertFields = "none"
    head_dim: int | None = None
    max_positions: int = 32_768
    hf_rules: tuple[KeyRule, ...] = HF_DENSE
    gguf_rules: tuple[KeyRule, ...] | None = GGUF_DENSE
    diffusion: str | None = None
    constants: Mapping[str, Any] = field(default_factory=dict)


SDAR_CONSTANTS: Mapping[str, Any] = {"attention_dropout": 0.0, "initializer_range": 0.02, "sliding_window": None}
"""What SDAR's releases say in fields that do not decide about the network; lmdeploy reads `sliding_window` as it is."""

_LLADA2 = Family(
    name="llada2_moe",
    architecture="LLaDA2MoeModelLM",
    attention_bias="ling",
    qk_norm=True,
    experts="ling",
    hf_rules=HF_LING,
    gguf_rules=None,
    constants=LING_CONSTANTS,
)
_QWEN3 = Family(name="qwen3", architecture="Qwen3ForCausalLM", qk_norm=True, head_dim=128)
_QWEN3_MOE = Family(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    qk_norm=True,
    experts="qwen3",
    hf_rules=HF_QWEN3_MOE,
    gguf_rules=None,
)

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        name="llama",
        architecture="LlamaForCausalLM",
        reads_mlp_bias=True,
        sliding_window="none",
        max_positions=2048,
        gguf_rules=GGUF_LLAMA,
    ),
    # llama.cpp writes Mistral under the name llama: a GGUF file of a Mistral model is read as that, with equal logits.
    "mistral": Family(
        name="mistral",
        architecture="MistralForCausalLM",
        attention_bias="none",
        sliding_window="mistral",
        max_positions=131_072,
        gguf_rules=None,
    ),
    "qwen2": Family(name="qwen2", architecture="Qwen2ForCausalLM", attention_bias="qkv"),
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3_MOE,
    "bailing_moe": replace(_LLADA2, name="bailing_moe", architecture="BailingMoeV2ForCausalLM", diffusion="llada2_moe"),
    "llada2_moe": _LLADA2,
    "llada2_moe_veomni": replace(_LLADA2, name="llada2_moe_veomni", hf_rules=HF_LING_STACKED),
    # SDAR: Qwen3's networks and names as block-diffusion classes.
    "sdar": replace(_QWEN3, name="sdar", architecture="SDARForCausalLM", gguf_rules=None, constants=SDAR_CONSTANTS),
    "sdar_moe": replace(_QWEN3_MOE, name="sdar_moe", architecture="SDARMoeForCausalLM", constants=SDAR_CONSTANTS),
}
ALIASES = {"bailing_moe_v2": "bailing_moe", "llada21_moe": "llada2_moe"}
"""Other spellings of `model_type` in circulation, for the same classes."""


def find_family(raw: Mapping[str, Any], where: str) -> Family:
    """Return the family that `model_type` names.

    Raises:
        CheckpointError: `model_type` is absent or not supported.
    """
    name = raw.get("model_type")
    name = ALIASES.get(name, name) if isinstance(name, str) else ""
    if name not in FAMILIES:
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
    moe = moe_config(family.experts, fields)
    qkv_bias, output_bias = _attention_biases(family, fields)
    stated = fields.integer("max_position_embeddings", family.max_positions)
    ling = family.experts == "ling"
    theta = None if ling else 10_000.0
    rope = rope_config({**raw, "max_position_embeddings": stated}, where, partial=ling, theta=theta)
    refuse_window(family, raw, longest_context(stated, rope), where)
    return ModelConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=rope,
        max_positions=longest_context(stated, rope),
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        mlp_bias=family.reads_mlp_bias and fields.flag("mlp_bias", False),
        qk_norm=fields.flag("use_qk_norm", True) if ling else family.qk_norm,
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        moe=moe,
    )


def _attention_biases(family: Family, fields: Fields) -> tuple[bool, bool]:
    """Return whether (query, key and value; the output) have biases."""
    if family.attention_bias == "ling":
        return fields.flag("use_qkv_bias", False), fields.flag("use_bias", False)
    bias = family.attention_bias == "field" and fields.flag("attention_bias", False)
    return bias or family.attention_bias == "qkv", bias


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
    if family.attention_bias == "field":
        fields["attention_bias"] = config.qkv_bias
    if family.reads_mlp_bias:
        fields["mlp_bias"] = config.mlp_bias
    if family.sliding_window == "qwen":
        fields["use_sliding_window"] = False
    if family.sliding_window == "mistral":
        fields["sliding_window"] = None
    return fields | hf_rope(config.rope) | hf_experts(family.experts, config)


def updated_config(raw: Mapping[str, Any], config: ModelConfig, where: str) -> dict[str, Any]:
    """Return `raw` with the fields changed in which `config` differs from what `raw` says; the rest is carried."""
    family, before = find_family(raw, where), model_config(raw, where)
    updated = dict(raw)
    if config.rope != before.rope:
        for name in ROPE_FIELDS:
            updated.pop(name, None)
        updated |= hf_rope(config.rope) | {"max_position_embeddings": config.max_positions}
    old, new = hf_config(family, before), hf_config(family, config)
    updated |= {name: value for name, value in new.items() if old.get(name) != value and name not in ROPE_FIELDS}
    if mtp_layers(updated, where):
        updated["num_nextn_predict_layers"] = 0  # their tensors are not written
    assert model_config(updated, where) == config, "config.json cannot express the architecture"
    return updated


def converted_config(raw: Mapping[str, Any], config: ModelConfig, where: str) -> tuple[Family, dict[str, Any]]:
    """Return the family of a converted checkpoint, and its config.json before the diffusion fields.

    A family with a diffusion model of its own becomes that: every field is written, for its class defaults describe no
    released model, and fields of parts that are not carried over are gone.

    Args:
        raw: config.json of the parent.
        config: architecture of the converted model.
        where: file of `raw`, for errors.
    """
    family = find_family(raw, where)
    if family.diffusion is None:
        return family, updated_config(raw, config, where)
    target = FAMILIES[family.diffusion]
    return target, rewritten_config(raw, config, target, where)


def rewritten_config(raw: Mapping[str, Any], config: ModelConfig, target: Family, where: str) -> dict[str, Any]:
    """Return the config.json of a block-diffusion class: every field that decides is written, the rest is carried.

    Args:
        raw: config.json of the checkpoint so far.
        config: architecture.
        target: family that is written.
        where: file of `raw`, for errors.
    """
    updated = updated_config(raw, config, where)
    kept = {name: value for name, value in updated.items() if name not in (*ROPE_FIELDS, *MTP_FIELDS)}
    return dict(target.constants) | kept | hf_config(target, config) | {"use_cache": False}


def mtp_layers(raw: Mapping[str, Any], where: str) -> int:
    """Return the number of multi-token-prediction layers behind the decoder's; they are never loaded.

    Raises:
        CheckpointError: `num_nextn_predict_layers` is no number of layers.
    """
    return (
        0
        if raw.get("num_nextn_predict_layers") is None
        else Fields(raw, where).integer("num_nextn_predict_layers", minimum=0)
    )


def _refuse_unsupported(family: Family, fields: Fields) -> None:
    raw = fields.raw
    refuse_quantised(raw, fields.where)
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise fields.error("hidden_act", "silu (no other activation is implemented)")


def refuse_quantised(raw: Mapping[str, Any], where: str) -> None:
    """Refuse weights in fewer bits, of any method (fp8, GPTQ, AWQ, ...).

    Args:
        raw: config.json.
        where: its file, for errors.

    Raises:
        CheckpointError: they are; the message names field and method.
    """
    for name in ("quantization_config", "compression_config"):
        stated = raw.get(name)
        if stated is not None:
            method = stated.get("quant_method") if isinstance(stated, Mapping) else None
            raise CheckpointError(
                f"{where}: {name} is set{f' ({method})' if method else ''}; quantised safetensors are not supported, "
                "use the original weights or a GGUF file"
            )


def refuse_window(family: Family, raw: Mapping[str, Any], max_positions: int, where: str) -> None:
    """Refuse a sliding window that some context is long enough to feel.

    Args:
        family: decides which fields count.
        raw: config.json.
        max_positions: longest context, tokens.
        where: its file, for errors.

    Raises:
        CheckpointError: a window is in use; the message names the field.
    """
    fields = Fields(raw, where)
    if family.sliding_window == "none":
        return
    if family.sliding_window == "mistral":
        # The one field where null is not absent: MistralConfig's default is 4096, null switches the window off.
        window = fields.integer("sliding_window", 4096)
        if ("sliding_window" not in raw or raw["sliding_window"] is not None) and window < max_positions:
            raise fields.error(
                "sliding_window", "null, or the longest context or more (sliding windows are not implemented)"
            )
    kinds = raw.get("layer_types")
    if kinds is None and family.sliding_window == "qwen":
        first = fields.integer("max_window_layers", 28, minimum=0)
        windowed = fields.flag("use_sliding_window", False) and raw.get("sliding_window", 4096) is not None
        if windowed and first < fields.integer("num_hidden_layers"):
            raise fields.error("use_sliding_window", "false (sliding windows are not implemented)")
    if kinds is None:
        return
    others = sorted({str(kind) for kind in kinds} - {"full_attention"}) if isinstance(kinds, list) else [str(kinds)]
    if others:
        raise CheckpointError(f"{where}: layer_types contains {', '.join(others)}; only full_attention is implemented")
