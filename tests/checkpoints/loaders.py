"""What the loaders of other programs expect of a folder, as small tables; each names the version that was read.

Nothing is imported from them: the tables hold the parameter names and shapes that their classes build from config.json,
and the fields that they read without a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Shapes = dict[str, tuple[int, ...]]

SGLANG_LLADA2_FIELDS = (
    *("embedding_dropout", "first_k_dense_replace", "head_dim", "hidden_act", "hidden_size", "intermediate_size"),
    *("max_position_embeddings", "moe_intermediate_size", "norm_topk_prob", "num_attention_heads", "num_experts"),
    *("num_experts_per_tok", "num_hidden_layers", "num_key_value_heads", "num_shared_experts", "rms_norm_eps"),
    *("tie_word_embeddings", "use_bias", "use_qkv_bias", "vocab_size", "torch_dtype"),
    # Read with a default that is none of LLaDA2's, so they must be there too.
    *("moe_router_enable_expert_bias", "n_group", "topk_group", "routed_scaling_factor", "router_dtype"),
    *("score_function", "use_qk_norm", "partial_rotary_factor", "rope_theta", "norm_head"),
)
"""sglang 0.5.23, srt/models/llada2.py; dInfer fce4e32 reads a subset."""

SDAR_FIELDS = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads"),
    *("rms_norm_eps", "tie_word_embeddings", "vocab_size", "hidden_act", "head_dim", "attention_bias"),
    *("rope_theta", "max_position_embeddings"),
    *("sliding_window", "pad_token_id", "bos_token_id", "eos_token_id"),  # lmdeploy, as attributes
)
"""sglang 0.5.23, srt/models/sdar.py, and lmdeploy 0.16.0, pytorch/models/sdar.py, configurations/default.py."""

SDAR_MOE_FIELDS = (
    *SDAR_FIELDS,
    *("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"),
    *("mlp_only_layers", "decoder_sparse_step"),
)
"""The same versions' sdar_moe.py."""


def llada2_parameters(raw: Mapping[str, Any]) -> Shapes:
    """Return the checkpoint names and shapes that fill `LLaDA2MoeModelLM` of sglang 0.5.23, experts split.

    The names of dInfer (fce4e32) and of vLLM's dllm-plugin (2191c59) are the same.
    """
    hidden, width, count = raw["hidden_size"], raw["head_dim"], raw["num_experts"]
    heads, groups = raw["num_attention_heads"], raw["num_key_value_heads"]
    shapes: Shapes = {
        "model.word_embeddings.weight": (raw["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (raw["vocab_size"], hidden),
    }
    for layer in range(raw["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        shapes[f"{at}.input_layernorm.weight"] = shapes[f"{at}.post_attention_layernorm.weight"] = (hidden,)
        shapes[f"{at}.attention.query_key_value.weight"] = ((heads + 2 * groups) * width, hidden)
        shapes[f"{at}.attention.query_layernorm.weight"] = shapes[f"{at}.attention.key_layernorm.weight"] = (width,)
        shapes[f"{at}.attention.dense.weight"] = (hidden, heads * width)
        if layer < raw["first_k_dense_replace"]:
            shapes |= _swiglu(f"{at}.mlp", hidden, raw["intermediate_size"])
            continue
        shapes[f"{at}.mlp.gate.weight"], shapes[f"{at}.mlp.gate.expert_bias"] = (count, hidden), (count,)
        for expert in range(count):
            shapes |= _swiglu(f"{at}.mlp.experts.{expert}", hidden, raw["moe_intermediate_size"])
        inner = raw.get("moe_shared_expert_intermediate_size", raw["moe_intermediate_size"])
        shapes |= _swiglu(f"{at}.mlp.shared_experts", hidden, inner * raw["num_shared_experts"])
    return shapes


def expanded_by_sglang(shapes: Shapes, raw: Mapping[str, Any]) -> Shapes:
    """Return what `_prepare_llada2_language_weights` of sglang 0.5.23 makes of a file's tensors: stacks are cut."""
    found: Shapes = {}
    for name, shape in shapes.items():
        place, _, part = name.rpartition(".")
        if not (place.endswith(".mlp.experts") and part in ("gate_proj", "up_proj", "down_proj")):
            found[name] = shape
            continue
        assert len(shape) == 3
        assert shape[0] == raw["num_experts"]
        found |= {f"{place}.{expert}.{part}.weight": shape[1:] for expert in range(shape[0])}
    return found


def dfactory_merged(raw: Mapping[str, Any]) -> Shapes:
    """Return the names and shapes that scripts/moe_convertor.py of dFactory (92b6890) writes: `torch.stack`, dim 0."""
    found: Shapes = {}
    for name, shape in llada2_parameters(raw).items():
        place, experts, rest = name.partition(".mlp.experts.")
        if not experts:
            found[name] = shape
            continue
        part = rest.split(".")[1]
        found[f"{place}.mlp.experts.{part}"] = (raw["num_experts"], *shape)
    return found


def sdar_parameters(raw: Mapping[str, Any]) -> Shapes:
    """Return the checkpoint names and shapes that fill `SDARForCausalLM` and `SDARMoeForCausalLM`.

    lmdeploy 0.16.0 raises on any other name; sglang 0.5.23 raises on a tied head, so that one is written.
    """
    hidden, width = raw["hidden_size"], raw["head_dim"]
    wide, narrow = raw["num_attention_heads"] * width, raw["num_key_value_heads"] * width
    shapes: Shapes = {
        "model.embed_tokens.weight": (raw["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (raw["vocab_size"], hidden),
    }
    for layer in range(raw["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        shapes[f"{at}.input_layernorm.weight"] = shapes[f"{at}.post_attention_layernorm.weight"] = (hidden,)
        for part, rows in (("q", wide), ("k", narrow), ("v", narrow)):
            shapes[f"{at}.self_attn.{part}_proj.weight"] = (rows, hidden)
        shapes[f"{at}.self_attn.o_proj.weight"] = (hidden, wide)
        shapes[f"{at}.self_attn.q_norm.weight"] = shapes[f"{at}.self_attn.k_norm.weight"] = (width,)
        if "num_experts" not in raw:
            shapes |= _swiglu(f"{at}.mlp", hidden, raw["intermediate_size"])
            continue
        shapes[f"{at}.mlp.gate.weight"] = (raw["num_experts"], hidden)
        for expert in range(raw["num_experts"]):
            shapes |= _swiglu(f"{at}.mlp.experts.{expert}", hidden, raw["moe_intermediate_size"])
    return shapes


def _swiglu(place: str, hidden: int, inner: int) -> Shapes:
    up = {f"{place}.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
    return up | {f"{place}.down_proj.weight": (hidden, inner)}
