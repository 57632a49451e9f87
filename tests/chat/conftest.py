"""The tiny model of the server's tests, and a server of it."""

from __future__ import annotations

from tests.serving.conftest import loaded, server

__all__ = ["loaded", "server"]
