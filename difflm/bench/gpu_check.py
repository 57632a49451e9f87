"""Does difflm work on this GPU? Parity, curriculum, training, decoding and timings, within ten minutes, no network.

    make gpu-check PYTHON=python3
    PYTHONPATH=. python3 -m difflm.bench.gpu_check --output benchmarks/gpu.json

Runs from the source tree, uninstalled. Each check stands alone: one that fails is a line of the table with its message,
and the others go on. A table, then one JSON document as the last line of stdout. Exit code 0: nothing failed; 1: a
check failed; 2: no such device, or a package is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from difflm.bench.checks import REQUIRED, missing, run_all


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks and return the exit code.

    Args:
        arguments: of the command line; None takes the program's.
    """
    options = _options(arguments)
    lacking = missing(REQUIRED)
    if lacking:
        print(f"gpu-check: needs the package {lacking[0]} (missing: {', '.join(lacking)})", file=sys.stderr)
        return 2
    import torch

    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            f"gpu-check: torch {torch.__version__} sees no CUDA device; run this on a machine with one, "
            "or give --device cpu for a smoke test",
            file=sys.stderr,
        )
        return 2
    from difflm.bench.gpu_suite import checks_for, environment_of
    from difflm.bench.report import table

    started = time.perf_counter()
    checks = checks_for(device, lengths=options.lengths, quick=options.quick)
    say = print if options.verbose else _to_stderr
    results = list(run_all(checks, budget=options.budget, say=say))
    rows = [(each.name, each.status, f"{each.seconds:.1f}", each.detail) for each in results]
    document = {
        "benchmark": "gpu-check",
        "device": str(device),
        "environment": environment_of(device),
        "seconds": time.perf_counter() - started,
        "checks": [asdict(each) for each in results],
    }
    print(", ".join(f"{name} {value}" for name, value in document["environment"].items() if value is not None))
    print(table(("check", "status", "s", "detail"), rows, left=(0, 1, 3)))
    counts = {status: sum(each.status == status for each in results) for status in ("passed", "failed", "not run")}
    print(f"{', '.join(f'{count} {status}' for status, count in counts.items())} in {document['seconds']:.0f} s")
    line = json.dumps(document, allow_nan=True)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(line + "\n", encoding="utf-8")
    print(line, flush=True)
    return 1 if counts["failed"] else 0


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu-check", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="torch device (default: cuda)")
    parser.add_argument("--output", type=Path, help="also write the JSON document to this file")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[1024, 2048, 4096], help="row lengths of the timings, tokens"
    )
    parser.add_argument("--budget", type=float, default=480.0, help="no check starts after so many seconds")
    parser.add_argument("--quick", action="store_true", help="fewer cases and steps: a smoke test")
    parser.add_argument("--verbose", action="store_true", help="progress to stdout instead of stderr")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
