"""A server in a thread of the tests, on a port of its own, and clients for it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from difflm.checkpoints.loading import LoadedModel
from difflm.checkpoints.templates import BoundedRender
from difflm.serving.server import Binding, Served
from difflm.serving.service import Service
from difflm.serving.telemetry import Telemetry

NAME = "tiny"
RENDER = BoundedRender()
"""Of all servers: a process takes a second to start."""


class Running:
    """A server that runs.

    Args:
        served: of this process.
    """

    def __init__(self, served: Served) -> None:
        self.served, self.address = served, ""
        self.started, self.code = threading.Event(), None
        self.thread = threading.Thread(target=self._run, daemon=True)
        served.on_start = self._took_place

    def _took_place(self, address: str) -> None:
        self.address = address
        self.started.set()

    def _run(self) -> None:
        self.code = self.served.run()

    @property
    def service(self) -> Service:
        return self.served.service

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def on_loop(self, call: Any) -> Any:
        """Return what a call returns on the server's loop."""
        loop = self.served._loop
        assert loop is not None

        async def run() -> Any:
            return call()

        return asyncio.run_coroutine_threadsafe(run(), loop).result(30)

    def client(self, **options: Any) -> Any:
        """Return the client of the openai package, which checks every response against its types."""
        openai = pytest.importorskip("openai", reason="openai is in the extra [dev]; CI has it")
        options = {"api_key": "none", "max_retries": 0, "timeout": 60, "_strict_response_validation": True} | options
        return openai.OpenAI(base_url=f"{self.address}/v1", **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx2.Response:
        """Return the response to a JSON body."""
        return httpx2.post(f"{self.address}{path}", json=body, timeout=60, **options)

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return httpx2.get(f"{self.address}{path}", timeout=60, **options)

    def connect(self) -> socket.socket:
        """Return a plain connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def stop(self) -> int | None:
        """Ask it to stop as a signal would; return its exit code."""
        self.served.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()
        return self.code


@contextmanager
def serving(
    loaded: LoadedModel, *, binding: Binding | None = None, telemetry: Telemetry | None = None, **options: Any
) -> Iterator[Running]:
    """Serve a model while the context lasts.

    Args:
        loaded: the model.
        binding: where; None: any free port.
        telemetry: of `Served`.
        options: of `Service`.
    """
    service = Service(loaded, **{"name": NAME, "render": RENDER, **options})
    served = Served(service, binding or Binding(port=0), telemetry=telemetry)
    running = Running(served)
    running.thread.start()
    assert running.started.wait(30), "the server did not start"
    try:
        yield running
    finally:
        running.stop()


def request_bytes(path: str, body: Any, *, headers: str = "") -> bytes:
    """Return a POST request as it goes over the wire."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
