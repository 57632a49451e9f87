"""A polite stop: the first SIGINT or SIGTERM is remembered, the second one aborts."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from difflm.errors import Interrupted

HANDLED = (signal.SIGINT, signal.SIGTERM)


def interrupted(received: signal.Signals, checkpoint: Path, *, step: int) -> Interrupted:
    """Return the error of a run that stopped after `step` steps and saved `checkpoint`."""
    return Interrupted(
        f"{received.name}: stopped after step {step}, everything is saved in {checkpoint}; resume with --resume auto",
        checkpoint=checkpoint,
    )


class StopRequest:
    """Context in which SIGINT (Ctrl-C) and SIGTERM ask a run to stop after the step at hand.

    The first signal is kept in `received`; a second one aborts at once, by KeyboardInterrupt (SIGINT) or SystemExit 143
    (SIGTERM). Handlers are put back on leaving. Only the main thread can have handlers: elsewhere nothing is changed.

    Attributes:
        received: the first signal, None so far.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Put the handlers in place."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {each: signal.signal(each, self._receive) for each in HANDLED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the handlers back that were there before."""
        for each, handler in self._previous.items():
            # None: it was set by something other than Python and cannot be put back.
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + number)
