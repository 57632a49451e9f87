"""What bfloat16 and 8-bit weights cost in quality: next-token likelihood of a text, against float32.

    python -m benchmarks.int8 CHECKPOINT TEXT.jsonl [--rows 16] [--length 256]

CHECKPOINT is read as a next-token model, the way that its parent was trained; the head is the engine's, so every
rounding of decoding counts. A table, then one JSON document as the last line.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from difflm.bench.environment import environment
from difflm.bench.report import table
from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.data.sources import read_documents
from difflm.models.attention import DenseAttention

PRECISIONS = {"float32": ("float32", "float"), "bfloat16": ("bfloat16", "float"), "int8": ("float32", "int8")}


def token_rows(loaded: LoadedModel, path: Path, *, rows: int, length: int) -> Tensor:
    """Return rows of a text's first tokens, int64 [rows, length]."""
    tokens: list[int] = []
    for document in read_documents(path):
        tokens += loaded.encode((document.text or "") + "\n")
        if len(tokens) >= rows * length:
            return torch.tensor(tokens[: rows * length]).view(rows, length)
    raise SystemExit(f"{path}: {len(tokens)} tokens; give {rows * length}, or ask for fewer rows")


@torch.inference_mode()
def log_probabilities(loaded: LoadedModel, token_BN: Tensor) -> Iterator[Tensor]:
    """Yield the float32 log-probabilities of each row's next tokens, [N - 1, V]."""
    count = token_BN.shape[1] - 1
    attend = DenseAttention(torch.ones(1, 1, count, count, dtype=torch.bool).tril())
    for row_N in token_BN:
        hidden_BND = loaded.model(row_N[None, :-1], torch.arange(count)[None], attend)
        yield loaded.model.head(hidden_BND[0]).float().log_softmax(-1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    options = parser.parse_args()
    models = {
        name: load_model(options.checkpoint, dtype=dtype, weights=weights)  # type: ignore[arg-type]
        for name, (dtype, weights) in PRECISIONS.items()
    }
    token_BN = token_rows(models["float32"], options.text, rows=options.rows, length=options.length)
    sums = {name: {"nll": 0.0, "kl": 0.0, "same": 0.0, "apart": 0.0} for name in models}
    streams = {name: log_probabilities(each, token_BN) for name, each in models.items()}
    for row_N in token_BN:
        exact_NV = next(streams["float32"])
        for name in models:
            found_NV = exact_NV if name == "float32" else next(streams[name])
            sums[name]["nll"] -= float(found_NV.gather(1, row_N[1:, None]).sum())
            sums[name]["kl"] += float((exact_NV.exp() * (exact_NV - found_NV)).sum())
            sums[name]["same"] += int((found_NV.argmax(-1) == exact_NV.argmax(-1)).sum())
            sums[name]["apart"] += float(((found_NV - exact_NV).std(-1) / exact_NV.std(-1)).sum())
    count = token_BN[:, 1:].numel()
    result = {
        name: {
            "perplexity": math.exp(each["nll"] / count),
            "kl_nats": each["kl"] / count,
            "same_best": each["same"] / count,
            "logit_error": each["apart"] / count,
        }
        for name, each in sums.items()
    }
    rows = [
        (name, f"{e['perplexity']:.3f}", f"{e['kl_nats']:.5f}", f"{e['same_best']:.2%}", f"{e['logit_error']:.2%}")
        for name, e in result.items()
    ]
    print(table(("weights", "perplexity", "KL to float32, nats", "same best token", "error / spread of logits"), rows))
    document = {"benchmark": "int8", "tokens": count, "result": result, "environment": environment()}
    print(json.dumps(document))


if __name__ == "__main__":
    main()
