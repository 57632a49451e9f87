"""config.json <-> `MoEConfig`: the fields of Ling 2.0 and LLaDA2, and those of Qwen3-MoE.

The defaults of these classes describe no released model (routed_scaling_factor 1.0 where every release has 2.5), so an
absent field is an error and never a default.
"""

from __future__ import annotations

from typing import Any, Literal

from difflm.checkpoints.fields import Fields
from difflm.models.config import ModelConfig, MoEConfig

ExpertFields = Literal["none", "ling", "qwen3"]

LING_REQUIRED = (
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "max_position_embeddings",
    "use_bias",
    "use_qkv_bias",
)
"""Fields outside of the experts that Ling's classes default to something no release uses."""

LING_CONSTANTS: dict[str, Any] = {
    "embedding_dropout": 0.0,
    "attention_dropout": 0.0,
    "output_dropout": 0.0,
    "initializer_range": 0.02,
    "use_rmsnorm": True,
    "output_router_logits": False,
}
"""What every release says in fields that do not decide about the network; the class defaults differ."""

ROUTER_NAMES = ("router_type", "scoring_func", "moe_router_score_function")
"""Other names under which a mixture says how its router scores; no class of these families reads them."""

MTP_FIELDS = ("num_nextn_predict_layers", "mtp_loss_scaling_factor")
"""Fields of multi-token prediction, which a diffusion model has not."""


def moe_config(style: ExpertFields, fields: Fields) -> MoEConfig | None:
    """Return the mixture of experts that a config.json describes, None for a dense family.

    Args:
        style: which fields describe it.
        fields: config.json.

    Raises:
        CheckpointError: a field is absent or wrong, or names something that is not implemented.
    """
    if style == "none":
        return None
    for name in ROUTER_NAMES if style == "ling" else ("score_function", *ROUTER_NAMES):
        score = "sigmoid" if style == "ling" else "softmax"
        if fields.raw.get(name) not in (None, score):
            raise fields.error(name, f"{score} or nothing (this family has no other router)")
    if fields.flag("multi_gate", False):
        raise fields.error("multi_gate", "false (not implemented)")
    return _ling(fields) if style == "ling" else _qwen3(fields)


def _ling(fields: Fields) -> MoEConfig:
    for name in LING_REQUIRED:
        if fields.raw.get(name) is None:
            raise fields.error(name, "a value (its class default is that of no released model)")
    _refuse(fields)
    num_experts, per_token = fields.integer("num_experts"), fields.integer("num_experts_per_tok")
    if fields.raw.get("n_group") == 0:
        raise fields.error("n_group", "1, with topk_group 1, where experts have no groups (published code fails on 0)")
    groups, kept = fields.integer("n_group"), fields.integer("topk_group")
    if num_experts % groups or (groups > 1 and num_experts // groups < 2):
        raise fields.error("n_group", f"a divisor of num_experts ({num_experts}) with 2 experts or more in a group")
    if kept > groups:
        raise fields.error("topk_group", f"at most n_group ({groups})")
    if per_token > kept * (num_experts // groups):
        raise fields.error("num_experts_per_tok", f"at most the experts of {kept} of {groups} groups")
    size = fields.integer("moe_intermediate_size")
    shared = 0 if fields.raw.get("num_shared_experts") == 0 else fields.integer("num_shared_experts")
    return MoEConfig(
        num_experts=num_experts,
        experts_per_token=per_token,
        expert_size=size,
        score="sigmoid",
        groups=groups,
        groups_kept=kept,
        expert_bias=_required_flag(fields, "moe_router_enable_expert_bias"),
        # The published code normalises where there is something to normalise.
        normalise=per_token > 1,
        scaling=fields.number("routed_scaling_factor"),
        shared_experts=shared,
        shared_size=fields.integer("moe_shared_expert_intermediate_size", size) if shared else 0,
        dense_layers=tuple(range(_dense_first(fields))),
    )


def _dense_first(fields: Fields) -> int:
    if fields.raw.get("first_k_dense_replace") is None:
        raise fields.error("first_k_dense_replace", "the number of dense layers at the bottom")
    count = fields.integer("first_k_dense_replace", minimum=0)
    if count > fields.integer("num_hidden_layers"):
        raise fields.error("first_k_dense_replace", "at most num_hidden_layers")
    return count


def _required_flag(fields: Fields, name: str) -> bool:
    if fields.raw.get(name) is None:
        raise fields.error(name, "true or false")
    return fields.flag(name, False)


def _refuse(fields: Fields) -> None:
    raw = fields.raw
    if raw.get("score_function") != "sigmoid":
        raise fields.error("score_function", "sigmoid (Ling 2.0, LLaDA2; no other router is implemented here)")
    if raw.get("router_dtype", "fp32") not in ("fp32", "float32"):
        raise fields.error("router_dtype", "fp32")
    if raw.get("norm_topk_prob") is not True:
        raise fields.error("norm_topk_prob", "true (the published code normalises whatever it says)")
    for name in ("norm_head", "norm_softmax"):
        if fields.flag(name, False):
            raise fields.error(name, "false (not implemented)")
    if not fields.flag("use_rmsnorm", True):
        raise fields.error("use_rmsnorm", "true (no other norm is implemented)")
    if raw.get("expert_capacity") is not None:
        raise fields.error("expert_capacity", "none (the block-wise choice of LLaDA2.2 is not implemented)")
    share, rotated = raw.get("partial_rotary_factor"), raw.get("rotary_dim")
    if share is None and (raw.get("rope_parameters") or {}).get("partial_rotary_factor") is None:
        raise fields.error("partial_rotary_factor", "the rotated share of a head (0.5 in every release)")
    if isinstance(share, int | float) and rotated is not None and rotated != int(fields.integer("head_dim") * share):
        raise fields.error("rotary_dim", f"head_dim times partial_rotary_factor ({share})")


def _qwen3(fields: Fields) -> MoEConfig:
    renamed = fields.raw.get("num_experts") is None and "num_local_experts" in fields.raw  # by transformers 5
    name = "num_local_experts" if renamed else "num_experts"
    num_experts, per_token = fields.integer(name), fields.integer("num_experts_per_tok")
    if fields.raw.get("num_local_experts", num_experts) != num_experts:
        raise fields.error("num_local_experts", f"num_experts ({num_experts}), or nothing")
    if per_token > num_experts:
        raise fields.error("num_experts_per_tok", f"at most num_experts ({num_experts})")
    plain = fields.raw.get("mlp_only_layers") or []
    layers, step = range(fields.integer("num_hidden_layers")), fields.integer("decoder_sparse_step", 1)
    if not isinstance(plain, list) or not all(type(each) is int and each in layers for each in plain):
        raise fields.error("mlp_only_layers", f"a list of layers, 0 to {len(layers) - 1}")
    return MoEConfig(
        num_experts=num_experts,
        experts_per_token=per_token,
        expert_size=fields.integer("moe_intermediate_size"),
        score="softmax",
        normalise=_required_flag(fields, "norm_topk_prob"),
        dense_layers=tuple(layer for layer in layers if layer in plain or (layer + 1) % step),
    )


def hf_experts(style: ExpertFields, config: ModelConfig) -> dict[str, Any]:
    """Return the config.json fields of a mixture of experts, every one of them; inverse of `moe_config`."""
    moe = config.moe
    if moe is None:
        return {}
    common = {
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.experts_per_token,
        "moe_intermediate_size": moe.expert_size,
    }
    if style == "qwen3":
        dense = {"mlp_only_layers": list(moe.dense_layers), "decoder_sparse_step": 1}
        return common | dense | {"norm_topk_prob": moe.normalise}
    assert moe.dense_layers == tuple(range(len(moe.dense_layers))), "Ling's dense layers are the first ones"
    return common | {
        "n_group": moe.groups,
        "topk_group": moe.groups_kept,
        "score_function": moe.score,
        "router_dtype": "fp32",
        "moe_router_enable_expert_bias": moe.expert_bias,
        "norm_topk_prob": True,
        "routed_scaling_factor": moe.scaling,
        "num_shared_experts": moe.shared_experts,
        "moe_shared_expert_intermediate_size": moe.shared_size or moe.expert_size,
        "first_k_dense_replace": len(moe.dense_layers),
        "use_qk_norm": config.qk_norm,
        "use_qkv_bias": config.qkv_bias,
        "use_bias": config.output_bias,
        "partial_rotary_factor": config.rope.partial,
        "rotary_dim": int(config.head_dim * config.rope.partial),
        "norm_head": False,
        "norm_softmax": False,
    }
