"""Tiny checkpoints as transformers writes them, and tokenizers made on the spot; no downloads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from difflm.checkpoints.shards import Entry, ShardWriter, plan_shards, write_safetensors

TEXT = [
    "the quick brown fox jumps over the lazy dog",
    "one two three four five",
    "In the beginning, 1234 words.",
    "a <b <c <d <e",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN_SCALING = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
QWEN3_MOE = {
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "norm_topk_prob": True,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
"""The least that config.json of a dense model says."""

LING: dict[str, Any] = {
    "architectures": ["BailingMoeV2ForCausalLM"],
    "model_type": "bailing_moe",
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128,
    "rope_theta": 600000.0,
    "rope_scaling": None,
    "partial_rotary_factor": 0.5,
    "rotary_dim": 6,
    "tie_word_embeddings": False,
    "use_qkv_bias": False,
    "use_bias": False,
    "use_qk_norm": True,
    "num_experts": 8,
    "num_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "moe_intermediate_size": 20,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "score_function": "sigmoid",
    "router_dtype": "fp32",
    "moe_router_enable_expert_bias": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""config.json of a tiny Ling 2.0, every field that decides about the network."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<spare_0>", "<spare_1>")


def hf_config(family: str, **changes: Any) -> Any:
    """Return a tiny transformers configuration."""
    from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig

    values: dict[str, Any] = {
        "vocab_size": 67,
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family == "qwen3":
        values["head_dim"] = 12  # not hidden_size / heads, on purpose
    if family == "mistral":
        values["sliding_window"] = None
    if family == "qwen3_moe":
        values |= QWEN3_MOE | {"head_dim": 12}
    classes = {
        "llama": LlamaConfig,
        "mistral": MistralConfig,
        "qwen2": Qwen2Config,
        "qwen3": Qwen3Config,
        "qwen3_moe": Qwen3MoeConfig,
    }
    return classes[family](**(values | changes))


def hf_model(family: str, *, seed: int = 0, **changes: Any) -> Any:
    """Return a transformers model with every parameter random: biases and norms moved off their defaults too."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(hf_config(family, **changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1.0 + 0.3 * noise if "norm" in name else 0.2 * noise)
    return model.eval()


def hf_folder(folder: Path, family: str = "llama", *, tokenizer: Any | None = None, **changes: Any) -> Any:
    """Write a tiny checkpoint with transformers (and a tokenizer, if given); return the transformers model."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    shard = changes.pop("max_shard_size", "5GB")
    dtype = changes.pop("dtype", torch.float32)
    model = hf_model(family, **changes).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return model


def ling_folder(
    folder: Path, *, dtype: torch.dtype = torch.float32, tokenizer: Any | None = None, **changes: Any
) -> Path:
    """Write a tiny random Ling 2.0 (or LLaDA2: `model_type`) by the names of its published files; return the folder.

    The expert biases are float32 whatever the dtype; with `num_nextn_predict_layers` there are such layers too.
    """
    raw = LING | changes
    hidden, width, layers = raw["hidden_size"], raw["head_dim"], raw["num_hidden_layers"]
    heads, groups = raw["num_attention_heads"], raw["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.word_embeddings.weight": (raw["vocab_size"], hidden)}
    extra = raw.get("num_nextn_predict_layers") or 0
    for layer in range(layers + extra):
        names: dict[str, tuple[int, ...]] = {
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "attention.query_key_value": ((heads + 2 * groups) * width, hidden),
            "attention.query_layernorm": (width,),
            "attention.key_layernorm": (width,),
            "attention.dense": (hidden, heads * width),
        }
        places = {"mlp": raw["intermediate_size"]}
        if layer >= raw["first_k_dense_replace"]:
            names["mlp.gate"] = (raw["num_experts"], hidden)
            shapes[f"model.layers.{layer}.mlp.gate.expert_bias"] = (raw["num_experts"],)
            places = {f"mlp.experts.{each}": raw["moe_intermediate_size"] for each in range(raw["num_experts"])}
            places["mlp.shared_experts"] = raw["moe_intermediate_size"] * raw["num_shared_experts"]
        if layer >= layers:
            names |= {"enorm": (hidden,), "hnorm": (hidden,), "final_layernorm": (hidden,)}
            names["eh_proj"] = (hidden, 2 * hidden)
        for place, inner in places.items():
            names |= {f"{place}.{part}_proj": (inner, hidden) for part in ("gate", "up")}
            names[f"{place}.down_proj"] = (hidden, inner)
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in names.items()}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (raw["vocab_size"], hidden)}
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        value = 1.0 + 0.3 * noise if "norm" in name else 0.2 * noise
        tensors[name] = value if name.endswith("expert_bias") else value.to(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def some_tensors(count: int = 6) -> dict[str, Tensor]:
    """Return tensors of different shapes and dtypes."""
    generator = torch.Generator().manual_seed(0)
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    return {f"t{i}": torch.randn(4, i + 1, generator=generator).to(dtypes[i % 3]) for i in range(count)}


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], *, max_shard_bytes: int = 10**9) -> None:
    """Write tensors with difflm's writer."""
    entries = [Entry(name, tuple(each.shape), each.dtype) for name, each in tensors.items()]

    def put(writer: ShardWriter) -> None:
        for name, tensor in tensors.items():
            writer.put(name, tensor)

    write_safetensors(folder, plan_shards(entries, max_shard_bytes=max_shard_bytes), put)


def sarvam(folder: Path, target: Path) -> Any:
    """Return transformers' `sarvam_moe` on a Ling or LLaDA2 folder: the same tensor names, an independent network."""
    from transformers import AutoModelForCausalLM

    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    raw |= {"model_type": "sarvam_moe", "architectures": ["SarvamMoEForCausalLM"]}
    for name in ("use_bias", "auto_map", "rotary_dim"):
        raw.pop(name, None)
    target.mkdir()
    (target / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    for file in folder.glob("*.safetensors*"):
        (target / file.name).write_bytes(file.read_bytes())
    read: Any = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, output_loading_info=True)
    model, report = read
    assert not report["missing_keys"], report["missing_keys"]
    assert not report["unexpected_keys"], report["unexpected_keys"]
    return model.eval()


def make_tokenizer(
    special: Sequence[str] = SPECIAL, *, eos: str | None = "<|im_end|>", template: str | None = CHAT_TEMPLATE
) -> Any:
    """Return a byte-level BPE tokenizer with the special tokens first, as SmolLM2 has them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=315 + len(special), special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    if eos is not None:
        tokenizer.eos_token = eos
        tokenizer.pad_token = eos
    tokenizer.chat_template = template
    return tokenizer


def causal(layer: int, query_BHNE: Tensor, key_BGNE: Tensor, value_BGNE: Tensor) -> Tensor:
    """Plain causal attention over a single stream."""
    return F.scaled_dot_product_attention(query_BHNE, key_BGNE, value_BGNE, is_causal=True, enable_gqa=True)


def our_logits(model: Any, token_BL: Tensor) -> Tensor:
    """Return causal logits of our `Transformer`, [B, L, V]."""
    position_BL = torch.arange(token_BL.shape[1]).expand_as(token_BL)
    with torch.no_grad():
        return model.head(model(token_BL, position_BL, causal))


def their_logits(model: Any, token_BL: Tensor) -> Tensor:
    """Return causal logits of a transformers model, [B, L, V]."""
    with torch.no_grad():
        return model(token_BL).logits


def tokens(vocab_size: int, *, rows: int = 2, length: int = 40, seed: int = 1) -> Tensor:
    """Return random token ids, [rows, length]."""
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))
