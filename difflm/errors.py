"""The exceptions that difflm raises for input it cannot use.

Every message names the field or file, the value that was found and what to do about it. The command
line prints such a message as one line and exits with code 2; anything else is a defect of ours.
"""


class DifflmError(ValueError):
    """Base class of the errors that a user can mend: bad configuration, files or requests."""


class ConfigError(DifflmError):
    """A configuration field, option or recipe value that cannot be used."""


class CheckpointError(DifflmError):
    """A checkpoint, GGUF file or run folder that cannot be read or written as asked."""


class DataError(DifflmError):
    """A training or validation data file that cannot be used."""


class RequestError(DifflmError):
    """A generation request that cannot be served (prompt, sampling parameters)."""
