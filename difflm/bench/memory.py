"""Peak memory of a program: of this process, or of a measurement in a process of its own.

    python -m difflm.bench.memory '{"model": ...}'

prints the peak resident set of a few training steps, MiB (see `difflm.bench.train`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from difflm.errors import DifflmError

if TYPE_CHECKING:
    from difflm.bench.train import Setting

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


def peak_in_own_process(setting: Setting) -> float:
    """Return the peak resident set of two training steps in a fresh process, MiB.

    Raises:
        DifflmError: that process failed; its last line is the message.
    """
    command = [sys.executable, "-m", "difflm.bench.memory", json.dumps(asdict(setting))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise DifflmError(f"memory of {setting.attention} at length {setting.length}: {last}")
    return float(done.stdout.split()[-1])


def main(argument: str) -> None:
    """Run two steps of a setting and print the peak.

    Args:
        argument: the setting as JSON.
    """
    from difflm.bench.train import Setting, TrainingStep, use_threads

    setting = Setting(**json.loads(argument))
    use_threads(setting.threads)
    step = TrainingStep(setting)
    for _ in range(2):
        step()
    print(peak_resident_mib())


if __name__ == "__main__":
    main(sys.argv[1])
