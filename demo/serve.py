"""The model of `make demo`, or the one that comes with difflm, behind `difflm serve`, with the page.

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

from difflm.cli.main import run as difflm

FOLDERS = ("demo", "demo-quick", "demo-paper", "demo-quick-paper")
"""Folders of the demo, the best first."""


def demo_model(runs: Path) -> Path | None:
    """Return the converted, trained and merged model of the best demo that is finished so far, if any.

    Args:
        runs: where the demos are.
    """
    models = (runs / name / "merged" for name in FOLDERS)
    return next((each for each in models if (each / "config.json").is_file()), None)


def main(arguments: list[str] | None = None, *, serve: Callable[[list[str]], int] = difflm) -> int:
    """Serve the model; return the exit code.

    Args:
        arguments: of the command line; None: those of this process.
        serve: runs a command of difflm.
    """
    parser = argparse.ArgumentParser(
        prog="python -m demo.serve", description="The demo's model or the built-in one, with the page."
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the demos (default: runs)")
    own, rest = parser.parse_known_args(arguments)
    model = demo_model(own.runs)
    if model is None:
        print(
            f"{own.runs}: it holds no model of the demo ({', '.join(FOLDERS[:2])}); make demo-quick makes one in "
            "minutes, make demo a better one",
            file=sys.stderr,
        )
    named = [] if model is None else [str(model), "--name", f"difflm-{model.parent.name}"]
    return serve(["serve", *named, "--log-level", "warning", *rest])


if __name__ == "__main__":
    sys.exit(main())
