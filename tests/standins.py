"""A tiny AR checkpoint on disk with a byte tokenizer, the stand-in for a real parent in tests of commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

EOS = "<|endoftext|>"
CHAT_TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer whose tokens are the 256 bytes and one EOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([EOS])
    return tokenizer


def word_tokenizer(texts: Sequence[str], *, special: Sequence[str] = (), vocabulary: int = 600) -> Tokenizer:
    """Return a byte-level BPE trained on `texts`, with EOS and further special tokens."""
    tokenizer = byte_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[EOS, *special], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_parent(
    folder: Path,
    *,
    layers: int = 2,
    hidden: int = 32,
    context: int = 512,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write a random Llama checkpoint with tied embeddings and return its folder; its tokens are bytes by default."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * 0.08

    tokenizer = tokenizer or byte_tokenizer()
    vocabulary = tokenizer.get_vocab_size()
    weights = {"model.embed_tokens.weight": matrix(vocabulary, hidden), "model.norm.weight": torch.ones(hidden)}
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden // 2, hidden),
        "self_attn.v_proj": (hidden // 2, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (2 * hidden, hidden),
        "mlp.up_proj": (2 * hidden, hidden),
        "mlp.down_proj": (hidden, 2 * hidden),
    }
    for layer in range(layers):
        for name, (rows, columns) in shapes.items():
            weights[f"model.layers.{layer}.{name}.weight"] = matrix(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = torch.ones(hidden)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": context,
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.token_to_id(EOS),
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))
    return folder


def write_texts(path: Path, *, documents: int = 40) -> Path:
    """Write a JSONL file of short, different, regular texts and return it."""
    words = ["in", "the", "beginning", "was", "a", "word", "and", "light"]
    lines = []
    for number in range(documents):
        text = " ".join(words[(number * step + step) % len(words)] for step in range(12 + number % 9))
        lines.append(json.dumps({"text": f"{number}: {text}."}))
    path.write_text("\n".join(lines) + "\n")
    return path
