"""The process: a socket, signals, draining, and an exit code that says how it ended."""

from __future__ import annotations

import asyncio
import functools
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from difflm.errors import ConfigError
from difflm.serving.app import make_app
from difflm.serving.service import Service
from difflm.serving.telemetry import Telemetry

if TYPE_CHECKING:
    import uvicorn

_log = logging.getLogger("difflm.serving")
FAILED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Where and how long.

    Attributes:
        host, port: of the socket; port 0 takes any that is free.
        grace_seconds: for running answers, from the first signal on.
        linger_seconds: between the engine's death and the exit, in which /health says so.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grace_seconds: float = 30.0
    linger_seconds: float = 3.0


class Served:
    """A running server.

    Args:
        service: what is served; its bridge is told to drain by the first signal.
        binding: where.
        on_start: called with the address once requests are taken.
        telemetry: makes a span of each request, and is closed at the end; None: there are none.
    """

    def __init__(
        self,
        service: Service,
        binding: Binding,
        *,
        on_start: Callable[[str], None] = print,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.service, self.binding, self.on_start = service, binding, on_start
        self.transports: dict[tuple[Any, ...], asyncio.BaseTransport] = {}
        self.failed, self.telemetry = False, telemetry
        self.server = self._make_server()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self) -> int:
        """Serve until a signal or the engine's death; return the exit code."""
        try:
            asyncio.run(self.serve())
        except SystemExit:  # the socket cannot be had; the server has said so
            raise ConfigError(
                f"--port: {self.binding.host}:{self.binding.port} cannot be bound; it is taken, or not this machine's"
            ) from None
        finally:
            if self.telemetry is not None:
                self.telemetry.close()
        return FAILED if self.failed else 0

    async def serve(self) -> None:
        """Serve until a signal or the engine's death."""
        self._loop = asyncio.get_running_loop()
        self._keep(self._announce())
        await self.server.serve()

    async def _announce(self) -> None:
        while not self.server.started:
            await asyncio.sleep(0.02)
        host, port = self.server.servers[0].sockets[0].getsockname()[:2]
        self.on_start(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    def _keep(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _make_server(self) -> uvicorn.Server:
        try:
            import uvicorn
            from uvicorn.protocols.http.h11_impl import H11Protocol
        except ImportError as error:
            raise ConfigError(f"serve: {error.name} is not installed; pip install 'difflm[serve]'") from None

        served = self

        class Protocol(H11Protocol):
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                served.transports[tuple(transport.get_extra_info("peername")[:2])] = transport

            def connection_lost(self, exc: Exception | None) -> None:
                served.transports.pop(tuple(self.transport.get_extra_info("peername")[:2]), None)
                super().connection_lost(exc)

        class Server(uvicorn.Server):
            def handle_exit(self, sig: int, frame: FrameType | None) -> None:
                served.signalled(sig)

        def aborting(scope: Any) -> Callable[[], None]:
            return functools.partial(served.abort, tuple(scope["client"]))

        self.service.bridge.on_dead = self._died
        config = uvicorn.Config(
            make_app(self.service, aborting=aborting, telemetry=self.telemetry),
            host=self.binding.host,
            port=self.binding.port,
            http=Protocol,
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        return Server(config)

    def abort(self, client: tuple[Any, ...]) -> None:
        """Cut the connection of a client.

        Args:
            client: its address.
        """
        transport = self.transports.get(client)
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()

    def signalled(self, number: int) -> None:
        """Drain at the first signal; stop at the second.

        Args:
            number: of the signal.
        """
        if self.service.bridge.state == "running" and self._loop is not None:
            self.service.bridge.drain()
            self._loop.call_soon_threadsafe(lambda: self._keep(self._drain(signal.Signals(number).name)))
        else:
            self.server.should_exit = True

    async def _drain(self, why: str) -> None:
        _log.info("%s: finishing %d answers, taking no new ones", why, self.service.bridge.active)
        try:
            async with asyncio.timeout(self.binding.grace_seconds):
                await self.service.bridge.idle()
        except TimeoutError:
            _log.warning("%d answers are cut: the grace time is over", self.service.bridge.active)
            self.service.bridge.fail_all()
        self.server.should_exit = True

    def _died(self) -> None:
        self.failed = True

        async def linger() -> None:
            await asyncio.sleep(self.binding.linger_seconds)
            self.server.should_exit = True

        self._keep(linger())
