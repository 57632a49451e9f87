"""Writes tiny GGUF files with the gguf package, the way llama.cpp's converter lays them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

HF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """Return the GGUF name of a safetensors name."""
    module, _, kind = name.rpartition(".")
    if not module.startswith("model.layers."):
        return f"{HF_NAMES[module]}.{kind}"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{HF_NAMES[rest]}.{kind}"


def permute(values: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's `LlamaModel.permute`."""
    shape = values.shape
    return values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def write_gguf(
    path: Path,
    model: Any,
    *,
    kind: str = "F32",
    tokenizer: Any | None = None,
    metadata: dict[str, Any] | None = None,
    rope_freqs: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Write a transformers model as GGUF.

    Args:
        path: file to write.
        model: transformers model.
        kind: quantisation of the matrices (norms and biases stay F32).
        tokenizer: byte-level BPE tokenizer whose vocabulary goes into the metadata.
        metadata: further keys, replacing those derived from the model; None leaves a key out.
        rope_freqs: divisors of Llama-3 scaling.

    Returns:
        Safetensors name -> the values that a reader must see.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    # llama.cpp has no architecture "mistral": its converter writes those models as llama.
    config, family = model.config, model.config.model_type.replace("mistral", "llama")
    writer = GGUFWriter(path, family)
    keys = _architecture(config) | ({} if tokenizer is None else _vocabulary(tokenizer)) | (metadata or {})
    for key, value in keys.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        if value is not None:
            add.get(type(value), writer.add_array)(key.replace("{}", family), value)
    wanted = GGMLQuantizationType[kind]
    seen = {}
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = parameter.float().numpy()
        stored = GGMLQuantizationType.F32 if values.ndim == 1 else wanted
        packed = quants.quantize(values, stored)
        seen[name] = quants.dequantize(packed, stored)
        if family == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            packed = permute(packed, heads)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(packed), raw_dtype=stored)
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", rope_freqs.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return seen


def _yarn(rope: dict[str, Any]) -> dict[str, Any]:
    if rope["rope_type"] != "yarn":
        return {}
    values = {
        "type": "yarn",
        "factor": float(rope["factor"]),
        "original_context_length": rope["original_max_position_embeddings"],
        "yarn_beta_fast": rope.get("beta_fast"),
    }
    return {f"{{}}.rope.scaling.{name}": value for name, value in values.items()}


def _architecture(config: Any) -> dict[str, Any]:
    head_dim = config.head_dim if hasattr(config, "head_dim") else config.hidden_size // config.num_attention_heads
    return {
        "{}.block_count": config.num_hidden_layers,
        "{}.context_length": config.max_position_embeddings,
        "{}.embedding_length": config.hidden_size,
        "{}.feed_forward_length": config.intermediate_size,
        "{}.attention.head_count": config.num_attention_heads,
        "{}.attention.head_count_kv": config.num_key_value_heads,
        "{}.attention.key_length": head_dim,
        "{}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "{}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "general.license": "mit",
    } | _yarn(config.rope_parameters)


def _vocabulary(tokenizer: Any) -> dict[str, Any]:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    ids = tokenizer.get_vocab()
    special = {entry["id"] for entry in state["added_tokens"]}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": sorted(ids, key=lambda token: ids[token]),
        "tokenizer.ggml.token_type": [3 if token_id in special else 1 for token_id in sorted(ids.values())],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in state["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": ids["<|im_start|>"],
        "tokenizer.ggml.eos_token_id": ids["<|im_end|>"],
        "tokenizer.ggml.padding_token_id": ids["<|im_end|>"],
        "tokenizer.chat_template": tokenizer.chat_template,
    }
