"""`python -m difflm` and the `difflm` command."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    # Read by OpenMP when torch is imported: spinning threads beside a busy neighbour are up to 10x slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    # What transformers has to say of a checkpoint, difflm says itself, in one line.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from difflm.cli.main import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
