"""Why a request was not answered, other than by a fault of its own."""

from __future__ import annotations


class Unanswered(Exception):
    """Base class: the request was in order, and was not answered."""


class Overloaded(Unanswered):
    """The queue is full.

    Args:
        message: for the client.
        retry_after: when to try again, seconds.
    """

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Draining(Unanswered):
    """The server takes no new requests, as it is about to stop."""


class EngineFailed(Unanswered):
    """A forward failed; what took part in it has no answer."""


class EngineDead(Unanswered):
    """The engine has stopped for good."""


class TimedOut(Unanswered):
    """The answer took longer than the server allows."""
