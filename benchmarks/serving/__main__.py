"""Measures the server: what a load does to it, and what it costs over the engine.

    python -m benchmarks.serving load --seconds 120
    python -m benchmarks.serving speed --model CONVERTED --results speed.jsonl --threads 2
    python -m benchmarks.serving speed ... --peer "NAME,MODEL,COMMAND --port {port}"

`load` ends with 1 if an answer was wrong or anything was left behind. `speed` appends to its results, goes on where it
was interrupted, and ends in Markdown tables; --table prints those of what is there. --decoding verified next_token
measures engine and server with each. A peer is another server of chat completions on this machine, of the parent that
the model was converted from (`difflm export` writes it), with as many threads:

    llama-cpp,m,python -m llama_cpp.server --model PARENT.gguf --n_threads 2 --model_alias m --port {port}
    transformers,PARENT,env OMP_NUM_THREADS=2 transformers serve PARENT --device cpu --dtype bfloat16 --port {port}
    running,m,http://127.0.0.1:8080
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from benchmarks.lossless.records import Results
from benchmarks.serving import load, speed, tables
from difflm import DifflmError, load_model
from difflm.training.build import set_threads


def run_load(given: argparse.Namespace) -> int:
    """Load a server; returns the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_model(given.model, dtype="float64") if given.model else load.tiny_model(Path(folder))
        seconds = None if given.requests else given.seconds
        report = load.run(loaded, streams=given.streams, seconds=seconds, requests=given.requests, seed=given.seed)
    print("\n".join(report.lines))
    return 1 if report.wrong or report.left else 0


def run_speed(given: argparse.Namespace) -> int:
    """Measure speed; returns the exit code."""
    if given.table:
        print(tables.summary(Results(given.results).rows))
        return 0
    if given.model is None:
        raise DifflmError("--model: it is missing; give a converted checkpoint with a chat template")
    set_threads(given.threads)
    peers = [speed.Peer.of(text) for text in given.peer]
    results = Results(given.results, speed.subject(given, peers))
    loaded = load_model(given.model, dtype=given.dtype)
    with speed.all_of(loaded, given, given.decoding or [None], peers) as systems:
        speed.measure(
            systems,
            results,
            clients=given.clients,
            rounds=given.rounds,
            requests=given.requests,
            most=given.max_tokens,
            count=lambda text: len(loaded.encode(text)),
            seed=given.seed,
        )
    print(tables.summary(results.rows))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    whole = argparse.ArgumentParser(prog="python -m benchmarks.serving", description="Measures the server.")
    parts = whole.add_subparsers(dest="command", required=True)
    loading = parts.add_parser("load", help="many clients, some of which leave or send nonsense")
    loading.add_argument("--model", type=Path, help="converted checkpoint; without: a tiny random one")
    loading.add_argument("--streams", type=int, default=64, help="clients at once")
    loading.add_argument("--seconds", type=float, default=120.0)
    loading.add_argument("--requests", type=int, help="end after so many instead")
    loading.add_argument("--seed", type=int, default=0)
    loading.set_defaults(run=run_load)
    timing = parts.add_parser("speed", help="throughput and latency against the number of clients")
    timing.add_argument("--model", type=Path, help="converted checkpoint with a chat template")
    timing.add_argument("--results", type=Path, required=True)
    timing.add_argument("--peer", action="append", default=[], metavar="NAME,MODEL,COMMAND|URL")
    timing.add_argument("--dtype", default="float32", help="of our weights")
    timing.add_argument(
        "--decoding", nargs="+", choices=["block", "next_token", "verified"], help="default: the model's"
    )
    timing.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    timing.add_argument("--rounds", type=int, default=5)
    timing.add_argument("--requests", type=int, default=8, help="of a measurement at least")
    timing.add_argument("--max-tokens", type=int, default=64)
    timing.add_argument("--threads", type=int, default=2)
    timing.add_argument("--seed", type=int, default=0)
    timing.add_argument("--table", action="store_true")
    timing.set_defaults(run=run_speed)
    return whole


def main(words: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    given = parser().parse_args(words)
    try:
        return given.run(given)
    except DifflmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
