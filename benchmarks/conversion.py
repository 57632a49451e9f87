"""Peak memory and speed of `difflm convert`, `merge` and `export` on synthetic checkpoints of growing size.

    python -m benchmarks.conversion --gigabytes 2 8 --work /tmp

Each run is a process of its own, which reads its peak resident memory from the kernel at its end (VmHWM: the touched
pages of mapped files count too; ru_maxrss would begin with the peak of the process that started it). A checkpoint of
N GB lies in N * 2 shards and is written in shards of 0.5 GB; a larger one has more layers, not larger tensors.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from difflm.bench.environment import environment

SHARD_BYTES = 500_000_000
HIDDEN, VOCABULARY = 1024, 32_000
DENSE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 8192,
    "num_attention_heads": 8,
    "tie_word_embeddings": False,
}
LING: dict[str, Any] = {
    "architectures": ["BailingMoeV2ForCausalLM"],
    "model_type": "bailing_moe",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "rope_theta": 600000.0,
    "rope_scaling": None,
    "partial_rotary_factor": 0.5,
    "rotary_dim": 64,
    "tie_word_embeddings": False,
    "use_qkv_bias": False,
    "use_bias": False,
    "use_qk_norm": True,
    "num_experts": 64,
    "num_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "moe_intermediate_size": 512,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "score_function": "sigmoid",
    "router_dtype": "fp32",
    "moe_router_enable_expert_bias": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""A Ling 2.0 whose layer of experts is 201 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run: wall and CPU seconds, peak resident memory in MiB."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


def shapes_of(raw: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a checkpoint's tensors, as the published files have them."""
    from difflm.checkpoints.families import find_family, model_config
    from difflm.checkpoints.rules import key_map
    from difflm.checkpoints.source import parameter_shapes

    config = model_config(dict(raw), "config.json")
    shapes = parameter_shapes(config)
    found: dict[str, tuple[int, ...]] = {}
    for rule in key_map(find_family(dict(raw), "config.json").hf_rules, shapes, config):
        found |= dict(
            zip(rule.disk, rule.change.disk_shapes([shapes[name] for name in rule.model], config), strict=True)
        )
    return found


def size_of(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return bytes in bfloat16."""
    return sum(2 * torch.Size(shape).numel() for shape in shapes.values())


def write_parent(folder: Path, raw: Mapping[str, Any], gigabytes: float, seed: int = 0) -> tuple[int, int]:
    """Write a bfloat16 checkpoint of about that size; return (bytes, shards)."""
    raw = dict(raw)
    layer = size_of(shapes_of({**raw, "num_hidden_layers": 3})) - size_of(shapes_of({**raw, "num_hidden_layers": 2}))
    raw["num_hidden_layers"] = max(2, round(gigabytes * 1e9 / layer))
    shapes = shapes_of(raw)
    noise = 0.02 * torch.randn(VOCABULARY * HIDDEN, generator=torch.Generator().manual_seed(seed))
    noise = noise.bfloat16()
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(raw))
    parts = list(_shards(shapes, gigabytes))
    weight_map = {}
    for number, names in enumerate(parts, start=1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        tensors: dict[str, Tensor] = {}
        for name in names:
            count = torch.Size(shapes[name]).numel()
            kind = torch.float32 if name.endswith("expert_bias") else torch.bfloat16
            tensors[name] = noise[:count].reshape(shapes[name]).to(kind, copy=True)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": size_of(shapes)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return size_of(shapes), len(parts)


def _shards(shapes: Mapping[str, tuple[int, ...]], gigabytes: float) -> Iterator[list[str]]:
    limit, shard, held = size_of(shapes) / (2 * gigabytes), list[str](), 0
    for name, shape in shapes.items():
        shard.append(name)
        held += 2 * torch.Size(shape).numel()
        if held >= limit:
            yield shard
            shard, held = [], 0
    if shard:
        yield shard


def measure(call: str, *arguments: object) -> Measured:
    """Measure one call of the package in a process of its own."""
    started = time.perf_counter()
    command = [sys.executable, "-c", call + PEAK, *map(str, arguments)]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    return Measured(seconds=time.perf_counter() - started, peak_mib=int(found[-2]) / 1024, cpu_seconds=float(found[-1]))


PEAK = """
import time
from pathlib import Path
lines = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM:")), time.process_time())
"""
CALLS = {
    "imports alone": "import difflm.checkpoints.export, difflm.checkpoints.convert, difflm.checkpoints.merge",
    "convert": f"""
import sys
from difflm.checkpoints.convert import convert
convert(sys.argv[1], sys.argv[2], mask_token_id=5, max_shard_bytes={SHARD_BYTES})
""",
    "merge": f"""
import sys
from difflm.checkpoints.merge import average_checkpoints
average_checkpoints([sys.argv[1], sys.argv[1]], sys.argv[2], max_shard_bytes={SHARD_BYTES})
""",
    "export": f"""
import sys
from difflm.checkpoints.export import export
export(sys.argv[1], sys.argv[2], format=sys.argv[3], max_shard_bytes={SHARD_BYTES})
""",
}


def measure_model(model: str, gigabytes: float, work: Path | None) -> Iterator[str]:
    """Write a checkpoint, convert it, average the result with itself, export it; yield a row of the table for each."""
    raw, layout = {"ling": (LING, "stacked"), "dense": (DENSE, "hf")}[model]
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        size, shards = write_parent(folder / "parent", raw, gigabytes)
        for call, source, target, words in (
            ("convert", "parent", "converted", ()),
            ("merge", "converted", "out", ()),
            ("export", "converted", "out", (layout,)),
        ):
            found = measure(CALLS[call], folder / source, folder / target, *words)
            yield row(model, " ".join((call, *words)), size / 1e9, shards, found)
            shutil.rmtree(folder / {"converted": "parent", "out": "out"}[target])


def row(model: str, call: str, gigabytes: float, shards: int, found: Measured) -> str:
    """Return a row of the table."""
    return (
        f"| {model} | {call} | {gigabytes:.1f} | {shards} | {found.peak_mib:.0f} MiB | {found.cpu_seconds:.0f} | "
        f"{found.seconds:.0f} |"
    )


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[2, 8])
    parser.add_argument("--models", nargs="+", default=["ling", "dense"])
    parser.add_argument("--work", type=Path, help="folder for three times the largest checkpoint; temporary if absent")
    arguments = parser.parse_args()
    print(environment())
    print("| model | call | GB | shards | peak RSS | CPU s | wall s |\n|---|---|---:|---:|---:|---:|---:|")
    print(row("-", "imports alone", 0, 0, measure(CALLS["imports alone"])), flush=True)
    for model in arguments.models:
        for gigabytes in arguments.gigabytes:
            for line in measure_model(model, gigabytes, arguments.work):
                print(line, flush=True)


if __name__ == "__main__":
    main()
