"""`difflm estimate` against real runs: time and peak memory of small shapes, each in a process of its own.

    python benchmarks/estimate.py [--steps 6] [--only experts] > benchmarks/DATE-estimate.md

Writes random checkpoints and texts into a temporary folder; needs the packages of the tests, no network. Both sides
count CPU seconds of one thread, so that other programs of the machine do not matter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from difflm.checkpoints.convert import convert
from difflm.estimate.run import estimate, estimate_tree
from difflm.recipes.resolving import resolve
from difflm.training.metrics import peak_memory
from difflm.training.trainer import Trainer
from tests.checkpoints.tiny import hf_folder, ling_folder
from tests.standins import byte_tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    # vocabulary, hidden, inner, layers, heads, key/value heads; overrides of the run
    "wide vocabulary, fp32": {
        "shape": (32_000, 384, 1024, 6, 6, 2),
        "run": ["data.row_length=256", "rows_per_batch=2", "curriculum=[{block_size: 8, tokens: 100000000}]"],
    },
    "deep, fp32, accumulation 2": {
        "shape": (4_096, 320, 864, 24, 5, 5),
        "run": [
            "data.row_length=512", "rows_per_batch=2", "accumulation=2",
            "curriculum=[{block_size: 32, tokens: 100000000}]",
        ],
    },
    "long rows, bf16, checkpointing": {
        "shape": (8_192, 512, 1408, 12, 8, 4),
        "run": [
            "data.row_length=1024", "rows_per_batch=2", "dtype=bfloat16", "activation_checkpointing=true",
            "curriculum=[{block_size: 8, tokens: 100000000}]",
        ],
    },
    "whole row as one block, Muon": {
        "shape": (8_192, 512, 1408, 12, 8, 4),
        "run": [
            "data.row_length=512", "rows_per_batch=4", "optimizer.kind=muon",
            "curriculum=[{block_size: row, tokens: 100000000}]",
        ],
    },
    "Ling 2.0, 32 experts, fp32": {
        "ling": {
            "vocab_size": 8_192, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6,
            "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64, "rotary_dim": 32,
            "max_position_embeddings": 4096, "num_experts": 32, "num_experts_per_tok": 4, "n_group": 4,
            "topk_group": 2, "moe_intermediate_size": 192,
        },
        "run": ["data.row_length=512", "rows_per_batch=2", "curriculum=[{block_size: 32, tokens: 100000000}]"],
    },
    "Ling 2.0, 64 experts, bf16, checkpointing": {
        "ling": {
            "vocab_size": 4_096, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 7,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "rotary_dim": 32,
            "max_position_embeddings": 4096, "num_experts": 64, "num_experts_per_tok": 8, "n_group": 8,
            "topk_group": 4, "moe_intermediate_size": 96,
        },
        "run": [
            "data.row_length=512", "rows_per_batch=2", "dtype=bfloat16", "activation_checkpointing=true",
            "curriculum=[{block_size: 8, tokens: 100000000}]",
        ],
    },
    "Qwen3-MoE, 16 experts, fp32, accumulation 2": {
        "qwen3_moe": {
            "vocab_size": 4_096, "hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 8,
            "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 64, "max_position_embeddings": 4096,
            "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 256, "bos_token_id": None,
            "eos_token_id": 256,
        },
        "run": [
            "data.row_length=512", "rows_per_batch=2", "accumulation=2",
            "curriculum=[{block_size: 32, tokens: 100000000}]",
        ],
    },
}  # fmt: skip


def write_checkpoint(folder: Path, facts: dict[str, Any]) -> Path:
    """Write a random checkpoint of a shape, converted, and return its folder."""
    parent = folder / "parent"
    if "shape" in facts:
        write_llama(parent, facts["shape"])
    else:
        if "ling" in facts:
            ling_folder(parent, **facts["ling"])
        else:
            hf_folder(parent, "qwen3_moe", **facts["qwen3_moe"])
        # Weights of a usual size: with larger ones softmaxes meet denormal numbers, which are slow.
        tensors = load_file(parent / "model.safetensors")
        tensors = {name: 0.1 * each if each.dim() > 1 else each for name, each in tensors.items()}
        save_file(tensors, parent / "model.safetensors", metadata={"format": "pt"})
    byte_tokenizer().save(str(parent / "tokenizer.json"))
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (parent / "tokenizer_config.json").write_text(json.dumps(facts))
    convert(parent, folder / "model", block_size=8)
    return folder / "model"


def write_llama(parent: Path, shape: tuple[int, ...]) -> None:
    """Write a random Llama checkpoint of a shape."""
    vocabulary, hidden, inner, layers, heads, groups = shape
    raw = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary, "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": groups, "head_dim": hidden // heads, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": 4096, "tie_word_embeddings": True, "eos_token_id": 256,
    }  # fmt: skip
    parent.mkdir(parents=True)
    narrow = hidden // heads * groups
    matrices = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    tensors = {
        "model.embed_tokens.weight": torch.randn(vocabulary, hidden) * 0.02,
        "model.norm.weight": torch.ones(hidden),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        tensors |= {f"{prefix}.{name}.weight": torch.randn(*size) * 0.02 for name, size in matrices.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{name}.weight"] = torch.ones(hidden)
    save_file(tensors, parent / "model.safetensors", metadata={"format": "pt"})
    (parent / "config.json").write_text(json.dumps(raw))


def main() -> None:
    """Measure every shape and print a Markdown table."""
    if sys.argv[1:2] == ["--child"]:
        measure_child(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", default="", help="shapes whose name holds this word")
    options = parser.parse_args()
    steps = options.steps
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts.jsonl"
        text = "In the beginning was the word, and the word was with the letters. " * 40
        texts.write_text("".join(json.dumps({"text": f"{number}: {text}"}) + "\n" for number in range(200)))
        for number, (name, facts) in enumerate(SHAPES.items()):
            if options.only not in name:
                continue
            model = write_checkpoint(Path(folder) / str(number), facts)
            rows.append(compare(name, model, texts, facts["run"], Path(folder) / f"run{number}", steps))
            print(json.dumps(rows[-1]), file=sys.stderr)
    print("\n".join(table(rows)))


def compare(name: str, model: Path, texts: Path, overrides: list[str], run: Path, steps: int) -> dict[str, Any]:
    """Return estimate and measurement of one shape."""
    recipe = run.with_suffix(".yaml")
    recipe.write_text("threads: 1\n")
    words = [str(recipe), *overrides, "--model", str(model), "--data", str(texts)]
    found = child("estimate", *words)
    trained = child("train", *words, "--output", str(run), str(steps))
    return {
        "name": name, "parameters": found["model"]["parameters"],
        "estimated_seconds": found["stages"][0]["seconds_per_step"], "measured_seconds": trained["seconds"],
        "estimated_bytes": found["memory"]["peak"], "measured_bytes": trained["bytes"], "memory": found["memory"],
    }  # fmt: skip


def child(*words: str) -> dict[str, Any]:
    """Run this file in a process of its own and return what it prints."""
    done = subprocess.run([sys.executable, __file__, "--child", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_child(kind: str, words: list[str]) -> None:
    """Print the estimate of a run, or the median CPU seconds of its steps and its peak memory."""
    steps = int(words.pop()) if kind == "train" else 0
    options = {words[index]: words[index + 1] for index in range(len(words)) if words[index].startswith("--")}
    overrides = [word for word in words[1:] if "=" in word]
    config = resolve(
        words[0], overrides, model=options["--model"], data=[options["--data"]], output=options.get("--output", "run")
    )
    if kind == "estimate":
        print(json.dumps(estimate_tree(estimate(config))))
        return
    trainer, seconds = Trainer(config), []
    for _ in range(steps):
        started = time.process_time()
        trainer.train_step()
        seconds.append(time.process_time() - started)
    print(json.dumps({"seconds": statistics.median(seconds[1:]), "bytes": peak_memory("cpu")}))


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return a Markdown table of the comparison."""
    lines = [
        "| run | parameters | peak estimated | measured | ratio | CPU s/step estimated | measured | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        memory = row["estimated_bytes"] / row["measured_bytes"]
        pace = row["estimated_seconds"] / row["measured_seconds"]
        lines.append(
            f"| {row['name']} | {row['parameters'] / 1e6:.1f} M | {row['estimated_bytes'] / 2**20:.0f} MiB | "
            f"{row['measured_bytes'] / 2**20:.0f} MiB | {memory:.2f} | {row['estimated_seconds']:.2f} | "
            f"{row['measured_seconds']:.2f} | {pace:.2f} |"
        )
    return lines


if __name__ == "__main__":
    main()
