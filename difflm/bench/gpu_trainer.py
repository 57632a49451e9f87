"""The whole trainer for the GPU check: a random parent on disk, converted, trained, resumed, loaded again.

Needs the packages of the trainer (pydantic, pyyaml, transformers), which the other checks do not.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from difflm.checkpoints.convert import convert
from difflm.checkpoints.loading import load_model
from difflm.runs import train
from difflm.training.config_io import config_from_tree
from difflm.training.state import checkpoint_folders

EOS = "<|end|>"
LENGTH = 64


HIDDEN, INNER, LAYERS, VOCABULARY = 128, 256, 2, 257
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "eos_token_id": VOCABULARY - 1,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}


def write_parent(folder: Path) -> Path:
    """Write a random Llama checkpoint whose tokens are bytes, and return its folder."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
        "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    names = {f"layers.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in shapes.items()}
    names |= {"embed_tokens": (VOCABULARY, HIDDEN)}
    tensors = {f"model.{name}.weight": 0.05 * torch.randn(shape, generator=generator) for name, shape in names.items()}
    for layer in range(LAYERS):
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = torch.ones(HIDDEN)
    tensors["model.norm.weight"] = torch.ones(HIDDEN)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    vocabulary = {letter: index for index, letter in enumerate(_byte_letters())} | {EOS: VOCABULARY - 1}
    files = {
        "config.json": CONFIG,
        "tokenizer.json": _tokenizer(vocabulary),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def _byte_letters() -> list[str]:
    """Return the letter of each byte in byte-level vocabularies (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def _tokenizer(vocabulary: dict[str, int]) -> dict[str, Any]:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": vocabulary[EOS], "content": EOS, **flags}],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }


def trainer_losses(folder: Path, *, device: str, dtype: str = "float32", steps: int = 24) -> list[list[float]]:
    """Convert, train, lose the last checkpoint, resume, load the result; return the losses before and after that.

    Args:
        folder: empty or absent; everything is written there.
        device: torch device.
        dtype: of the run.
        steps: optimiser steps, a multiple of 4.
    """
    model = folder / "model"
    convert(write_parent(folder / "parent"), model, block_size=8)
    texts = folder / "texts.jsonl"
    words = ("one", "two", "three", "four", "five", "six", "seven")
    lines = [" ".join(words[(i + j * j) % 7] for j in range(12)) for i in range(40)]
    texts.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    config = config_from_tree(_run(model, texts, folder / "run", steps=steps) | {"device": device, "dtype": dtype})
    losses: list[list[float]] = []
    for _ in range(2):
        last = train(config, resume="auto")
        losses.append(_losses(folder / "run" / "metrics.jsonl"))
        load_model(last, device=device, dtype=dtype)
        if len(losses) == 1:
            shutil.rmtree(checkpoint_folders(folder / "run")[-1])
    return losses


def _losses(metrics: Path) -> list[float]:
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def _run(model: Path, texts: Path, output: Path, *, steps: int) -> dict[str, Any]:
    """Return the run: two block sizes, embedding noise, a checkpoint at each quarter."""
    quarter = steps * 4 * LENGTH // 4
    return {
        "model": str(model),
        "output": str(output),
        "data": {"paths": [str(texts)], "row_length": LENGTH, "validation_fraction": 0.1},
        "curriculum": [{"block_size": 8, "tokens": 2 * quarter}, {"block_size": 32, "tokens": 2 * quarter}],
        "optimizer": {"learning_rate": 3e-3},
        "lr_schedule": {"kind": "constant"},
        "embedding_noise": {"sigma": 0.05, "stages": 1},
        "validation": {"rows": 2, "block_sizes": [8]},
        "checkpoint": {"every_tokens": quarter, "keep": 3},
        "rows_per_batch": 4,
        "activation_checkpointing": True,
        "threads": 1,
    }
