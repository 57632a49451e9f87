"""Constraints compiled in a process that may die of it, before they are compiled in one that may not.

llguidance counts most of its work and gives up in time. Not all of it: numbers that are multiples of a large one take
seconds, and rules nested in thousands of others overflow the stack, which ends the process that they are compiled in.
A trial is a fork of a small process that holds the vocabulary: the system ends it when it has used up its seconds.
Where a system cannot fork, there are no trials.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from difflm.checkpoints.constraints import Constraint
from difflm.checkpoints.grammars import Compiler, Vocabulary
from difflm.checkpoints.processes import START_SECONDS, LineProcess
from difflm.errors import RequestError

_READY = b"ready\n"
_STEPS = 8
"""Tokens of a trial: what a grammar costs shows in the first ones."""
_STACK_BYTES = 4 << 20
"""Of a trial: half of what threads have, so that what passes fits there."""


@dataclass(slots=True, kw_only=True)
class Trials:
    """Tries constraints, one at a time; the process is started when it is first needed, and used again.

    Attributes:
        seconds: of processor time for a constraint (1 more at most, as systems count whole ones).
        memory_bytes: beyond what the process has.
        patience: seconds by the clock after which a trial is given up on a machine with no time for it.
    """

    seconds: float = 1.0
    memory_bytes: int = 1 << 30
    patience: float = START_SECONDS
    _process: _Process | None = field(default=None, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def check(self, constraint: Constraint, vocabulary: Vocabulary) -> None:
        """Let a constraint pass that can be compiled, or is refused in time; why it is refused is said elsewhere.

        Args:
            constraint: to be tried.
            vocabulary: of the tokenizer that it is for, the same each time.

        Raises:
            RequestError: it takes too much time or memory, or is nested too deep.
        """
        if "fork" not in vars(os):
            return
        with self._lock:
            if self._process is None:
                self._process = _Process(vocabulary, self)
            process = self._process
            said = process.ask(constraint, self.patience)
            if not said:
                self._process = None
                process.end()
        if said != b"0\n":
            raise RequestError(
                f"{constraint.field}: it takes more than the {self.seconds:g} seconds, or more memory, than there is "
                "for it, or is nested too deep; make it smaller"
            )

    def close(self) -> None:
        """End the process; a trial that runs ends with it."""
        process, self._process = self._process, None
        if process is not None:
            process.end()


class _Process(LineProcess):
    """The process that forks."""

    def __init__(self, vocabulary: Vocabulary, limits: Trials) -> None:
        super().__init__("difflm.checkpoints.trials", str(limits.seconds), str(limits.memory_bytes))
        asked = json.dumps([vocabulary.tokenizer, vocabulary.size, vocabulary.ends]).encode("ascii")
        if self._line(asked, START_SECONDS) != _READY:
            self.end()
            raise RuntimeError("the process that tries constraints does not start")

    def ask(self, constraint: Constraint, seconds: float) -> bytes:
        """Return what became of a trial: nothing where the process is gone or was not done in time."""
        return self._line(json.dumps([constraint.field, constraint.text]).encode("ascii"), seconds)

    def _line(self, question: bytes, seconds: float) -> bytes:
        with suppress(TimeoutError):
            return self.line(question + b"\n", seconds)
        return b""


# What follows runs in the process.


def _bound(seconds: float, memory_bytes: int) -> None:
    """Let this process use so much more than it has, and leave no file behind when it is ended."""
    resource: Any = importlib.import_module("resource")
    most = math.ceil(time.process_time() + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):  # the system does not say what it has
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        bytes_ = pages * resource.getpagesize() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (bytes_, bytes_))


def _try(compiler: Compiler, constraint: Constraint) -> None:
    """Compile and take some tokens, whatever comes of it."""
    with suppress(RequestError):
        matcher = compiler.compiled(constraint)
        for _ in range(_STEPS):
            bits = matcher.compute_bitmask()
            tokens = [8 * place + bit for place, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1]
            if matcher.is_error() or not tokens or matcher.try_consume_tokens([tokens[len(tokens) // 2]]) != 1:
                return


def _trial(compiler: Compiler, constraint: Constraint, seconds: float, memory_bytes: int) -> int:
    """Return how a fork ended that compiled a constraint: 0 where it came to its end."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        _bound(seconds, memory_bytes)
        threading.stack_size(_STACK_BYTES)
        thread = threading.Thread(target=_try, args=(compiler, constraint))
        thread.start()
        thread.join()
        os._exit(0)
    finally:
        os._exit(1)


def _answer(calls: IO[bytes], replies: IO[bytes], seconds: float, memory_bytes: int) -> None:
    """Try the constraint of each line until there are no more; the first line is the vocabulary."""
    tokenizer, size, ends = json.loads(calls.readline())
    compiler = Compiler(Vocabulary(tokenizer=tokenizer, size=size, ends=tuple(ends)))
    replies.write(_READY)
    replies.flush()
    for line in calls:
        kind, text = json.loads(line)
        constraint = Constraint(json_object=True) if kind == "json_object" else Constraint(**{kind: text})
        replies.write(b"%d\n" % _trial(compiler, constraint, seconds, memory_bytes))
        replies.flush()


def _main(arguments: Sequence[str]) -> None:
    replies = sys.stdout.buffer
    sys.stdout = sys.stderr  # replies are the only thing that is written there
    _answer(sys.stdin.buffer, replies, float(arguments[0]), int(arguments[1]))


if __name__ == "__main__":
    _main(sys.argv[1:])
