"""A process of this package that answers lines, and is ended where it takes too long."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

START_SECONDS = 120.0
"""For a process to start: it imports transformers, on a machine that may be busy."""


class LineProcess:
    """One process; one thread at a time asks it.

    Args:
        module: that is run.
        arguments: of its command line.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        package = str(Path(__file__).parents[2])
        known = os.environ.get("PYTHONPATH")
        environment = os.environ | {
            "PYTHONPATH": f"{package}{os.pathsep}{known}" if known else package,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        # -P: nothing in the current folder is taken for a module. A session of its own: Ctrl-C is not for it.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def line(self, question: bytes, seconds: float) -> bytes:
        """Return the next line of the process, after it was asked something; without its end where it is gone.

        Raises:
            TimeoutError: there was none in time; the process is ended.
        """
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            with suppress(BrokenPipeError):
                stdin.write(question)
                stdin.flush()
            line = stdout.readline()
        finally:
            timer.cancel()
        if late.is_set():
            raise TimeoutError(f"it did not end within {seconds:g} seconds")
        return line

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what could not be written
                pipe.close()
