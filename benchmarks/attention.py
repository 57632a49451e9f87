"""Split attention against the dense mask: forward + backward time and peak memory, in pairs on the same inputs.

    python benchmarks/attention.py > benchmarks/attention.json

The shape is SmolLM2-135M's (9 query heads, 3 key/value heads, width 64), block size 32, two streams (Eq. 3). Each
pair alternates the two in one process and reports the median of the per-pair ratios, so a busy machine moves both.
Memory is the growth of the peak resident set in a process of its own. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from difflm.diffusion.masks import layout_mask, materialise
from difflm.models.attention import DenseAttention, SplitAttention
from difflm.models.transformer import Attend
from difflm.types import Layout

HEADS, GROUPS, WIDTH, BLOCK = 9, 3, 64, 32


def layout_of(length: int, documents: int) -> Layout:
    """Return a row of equally long documents."""
    part = length // documents
    document = torch.arange(length)[None] // part
    return Layout(document_BL=document, block_BL=(torch.arange(length)[None] % part) // BLOCK, two_streams=True)


def attention_of(kind: str, layout: Layout) -> Attend:
    """Return "dense", "split" or "portable" for a layout; building it is part of what is timed."""
    length = layout.document_BL.shape[1]
    if kind == "dense":
        return DenseAttention(materialise(layout_mask(layout), 1, 2 * length))
    backend = "split" if kind == "split" else "portable"
    return SplitAttention(layout, heads_per_group=HEADS // GROUPS, dtype=torch.float32, device="cpu", backend=backend)


def inputs_of(length: int) -> list[torch.Tensor]:
    """Return query, key and value."""
    generator = torch.Generator().manual_seed(0)
    shape = [(1, heads, 2 * length, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    return [torch.randn(each, generator=generator).requires_grad_() for each in shape]


def once(attend: Attend, inputs: list[torch.Tensor]) -> float:
    """Return the seconds of one forward + backward of one layer."""
    started = time.perf_counter()
    torch.autograd.grad(attend(0, *inputs).sum(), inputs)
    return time.perf_counter() - started


def compare(length: int, documents: int, kind: str, pairs: int) -> dict[str, float | int | str]:
    """Return the median times of dense and `kind`, and the median of the per-pair ratios."""
    layout, inputs = layout_of(length, documents), inputs_of(length)
    dense, other = attention_of("dense", layout), attention_of(kind, layout)
    once(dense, inputs), once(other, inputs)
    left, right = zip(*((once(dense, inputs), once(other, inputs)) for _ in range(pairs)), strict=True)
    return {
        "length": length,
        "documents": documents,
        "kind": kind,
        "dense_ms": 1000 * statistics.median(left),
        "ms": 1000 * statistics.median(right),
        "ratio": statistics.median(one / two for one, two in zip(left, right, strict=True)),
        "dense_mib": peak_growth("dense", length, documents),
        "mib": peak_growth(kind, length, documents),
    }


def peak_growth(kind: str, length: int, documents: int) -> float:
    """Return by how many MiB the peak resident set grows over one forward + backward, in a fresh process."""
    command = [sys.executable, __file__, "--memory", kind, "--length", str(length), "--documents", str(documents)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(kind: str, length: int, documents: int) -> None:
    """Print the growth of the peak resident set of this process, MiB."""
    torch.set_num_threads(1)
    warm = layout_of(128, 1)
    once(attention_of(kind, warm), inputs_of(128))
    inputs, layout = inputs_of(length), layout_of(length, documents)
    before = peak_kib()
    once(attention_of(kind, layout), inputs)
    print((peak_kib() - before) / 1024)


def peak_kib() -> int:
    """Return the peak resident set of this program in KiB (Linux; getrusage would count the parent's as well)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    """Run all cases; print a line each and one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=7, help="pairs per case")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--documents", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        measure_memory(options.memory, options.length, options.documents)
        return
    torch.set_num_threads(options.threads)
    rows = []
    for length in (512, 1024, 2048):
        for documents in (1, 4):
            for kind in ("split", "portable"):
                row = compare(length, documents, kind, options.pairs)
                rows.append(row)
                print(
                    f"L {length}, {documents} document(s), {kind}: dense {row['dense_ms']:.0f} ms, {row['ms']:.0f} ms, "
                    f"ratio {row['ratio']:.2f}; memory dense {row['dense_mib']:.0f}, {row['mib']:.0f} MiB",
                    flush=True,
                )
    facts = {"torch": torch.__version__, "machine": platform.processor() or platform.machine()}
    print(json.dumps({**facts, "threads": options.threads, "block_size": BLOCK, "rows": rows}))


if __name__ == "__main__":
    main()
