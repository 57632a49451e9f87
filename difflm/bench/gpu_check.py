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
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

REQUIRED = {"torch": "torch", "numpy": "numpy", "safetensors": "safetensors"}
FOR_THE_TRAINER = {"pydantic": "pydantic", "yaml": "pyyaml", "transformers": "transformers", "matplotlib": "matplotlib"}
"""Modules and the packages that hold them."""

Status = Literal["passed", "failed", "not run"]


class NotRunError(Exception):
    """A check that cannot run here, with the reason."""


class WrongError(Exception):
    """A check that found something wrong."""


def require(right: bool, detail: str) -> None:
    """Raise `WrongError` with the detail where something is not right."""
    if not right:
        raise WrongError(detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One check.

    Attributes:
        name: what was checked.
        status: "not run" where a package is missing or the time was up.
        detail: a line for people.
        seconds: it took.
        figures: for programs.
    """

    name: str
    status: Status
    detail: str
    seconds: float
    figures: dict[str, Any] = field(default_factory=dict)


Check = Callable[[], tuple[str, dict[str, Any]]]
"""Returns the detail and the figures; raises `WrongError` for a result that is wrong."""


def missing(modules: dict[str, str]) -> list[str]:
    """Return the packages whose modules are not installed.

    Args:
        modules: module -> package.
    """
    return [package for module, package in modules.items() if not _installed(module)]


def _installed(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None
    return find_spec(module) is not None


def run_check(name: str, check: Check) -> Result:
    """Run one check; whatever it raises becomes its result."""
    started = time.perf_counter()
    status: Status = "passed"
    figures: dict[str, Any] = {}
    try:
        detail, figures = check()
    except NotRunError as error:
        status, detail = "not run", str(error)
    except WrongError as error:
        status, detail = "failed", str(error)
    except Exception as error:  # the point of a check: any failure is a finding
        status = "failed"
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        figures = {"traceback": traceback.format_exc()[-4000:]}
    return Result(name=name, status=status, detail=detail, seconds=time.perf_counter() - started, figures=figures)


def run_all(checks: Sequence[tuple[str, Check]], *, budget: float, say: Callable[[str], None]) -> Iterator[Result]:
    """Yield the result of each check; none is started after the budget is spent.

    Args:
        checks: names and checks, the important ones first.
        budget: seconds.
        say: receives a line for each check.
    """
    started = time.perf_counter()
    for name, check in checks:
        if time.perf_counter() - started > budget:
            result = Result(name=name, status="not run", detail=f"the {budget:.0f} seconds were up", seconds=0.0)
        else:
            result = run_check(name, check)
        say(f"{result.status}: {name} ({result.seconds:.1f} s): {result.detail}")
        yield result


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
