"""The exceptions that difflm raises for input it cannot use.

Every message names the field or file, the value that was found and what to do about it. The command
line prints such a message as one line and exits with code 2; anything else is a defect of ours.
"""

from __future__ import annotations

from pathlib import Path


class DifflmError(ValueError):
    """Base class of the errors that a user can mend: bad configuration, files or requests."""


class ConfigError(DifflmError):
    """A configuration field, option or recipe value that cannot be used."""


class CheckpointError(DifflmError):
    """A checkpoint, GGUF file or run folder that cannot be read or written as asked."""


class DataError(DifflmError):
    """A training or validation data file that cannot be used."""


class Interrupted(DifflmError):
    """A training run that a signal stopped after it had saved everything; resuming continues it exactly.

    Args:
        message: for the user.
        checkpoint: what was saved.
    """

    def __init__(self, message: str, *, checkpoint: Path) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


class RequestError(DifflmError):
    """A generation request that cannot be served (prompt, sampling parameters)."""
