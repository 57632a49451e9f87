"""Tiny checkpoints as transformers writes them, and tokenizers made on the spot; no downloads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<spare_0>", "<spare_1>")


def hf_config(family: str, **changes: Any) -> Any:
    """Return a tiny transformers configuration."""
    from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

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
    classes = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
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
