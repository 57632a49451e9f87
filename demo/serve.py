"""The model of `make demo` behind `difflm serve`, with the page.

python -m demo.serve [--runs FOLDER] [options of difflm serve]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from difflm import DifflmError
from difflm.cli.main import run as difflm

FOLDERS = ("demo", "demo-quick", "demo-paper", "demo-quick-paper")
"""Folders of the demo, the best first."""


def demo_model(runs: Path) -> Path:
    """Return the converted, trained and merged model of the best demo that is finished so far.

    Args:
        runs: where the demos are.

    Raises:
        DifflmError: there is none; it says how to make one.
    """
    for name in FOLDERS:
        model = runs / name / "merged"
        if (model / "config.json").is_file():
            return model
    raise DifflmError(
        f"{runs}: it holds no model of the demo ({', '.join(FOLDERS[:2])}); make demo-quick makes one in minutes, "
        "make demo a better one"
    )


def main(arguments: list[str] | None = None, *, serve: Callable[[list[str]], int] = difflm) -> int:
    """Serve the model; return the exit code.

    Args:
        arguments: of the command line; None: those of this process.
        serve: runs a command of difflm.
    """
    parser = argparse.ArgumentParser(prog="python -m demo.serve", description="The demo's model, with the page.")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the demos (default: runs)")
    own, rest = parser.parse_known_args(arguments)
    try:
        model = demo_model(own.runs)
    except DifflmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return serve(["serve", str(model), "--name", f"difflm-{model.parent.name}", "--log-level", "warning", *rest])


if __name__ == "__main__":
    sys.exit(main())
