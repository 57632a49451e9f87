"""Peak memory of a program: of this process, or of a measurement in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from difflm.errors import DifflmError

STATUS = Path("/proc/self/status")


def peak_resident_mib() -> float:
    """Return the peak resident set of this process since its program started, MiB.

    Linux's counter of the program itself comes first: the other one carries over the peak of the parent process.
    """
    if STATUS.exists():
        for line in STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    try:
        import resource
    except ImportError:  # not on Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def number_printed_by(module: str, arguments: Sequence[str], *, what: str) -> float:
    """Return the last word that a module prints when it is run in a fresh process, as a number.

    Args:
        module: run as `python -m module`.
        arguments: of its command line.
        what: is measured, for errors.

    Raises:
        DifflmError: that process failed; its last line is the message.
    """
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise DifflmError(f"{what}: {last}")
    return float(done.stdout.split()[-1])
