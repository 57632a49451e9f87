"""What every request passes first: its host, its key, the size and the time of its body, a number for the log."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from difflm.serving.errors import ApiError
from difflm.serving.limits import Access, Limits
from difflm.serving.logs import told
from difflm.serving.page import PLACES
from difflm.serving.sse import Receive, Send, written
from difflm.serving.telemetry import Telemetry

OPEN = ("/health", "/ready")
"""Paths that need no key."""

Scope = MutableMapping[str, Any]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
_log = logging.getLogger("difflm.serving.access")


def header(scope: Scope, name: str) -> bytes | None:
    """Return a header of a request, None where it has none.

    Args:
        scope: of the request.
        name: in lower case.
    """
    return next((value for key, value in scope["headers"] if key == name.encode()), None)


@dataclass(slots=True)
class Guard:
    """An application in front of another one.

    Attributes:
        app: the other one.
        access: who may ask.
        limits: of bodies.
        telemetry: makes a span of each request; None: there are none.
    """

    app: Application
    access: Access
    limits: Limits
    telemetry: Telemetry | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it; write a line of the log at its end."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, number = time.monotonic(), 0, request_id(scope)
        state: dict[str, Any] = scope.setdefault("state", {})
        state |= {"request_id": number, "facts": {}}
        telemetry, method = self.telemetry, scope["method"]
        span = None if telemetry is None else telemetry.begin(method, scope["path"], scope["headers"])

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", number.encode())]
            await send(message)

        try:
            self._check(scope, state)
            await self.app(scope, self._bounded(scope, receive), answer)
        except ApiError as error:
            await refuse(error, answer)
        except Exception as error:
            status = status or 500  # the framework answers it, behind this
            state["facts"]["error"] = type(error).__name__
            raise
        finally:
            facts = {"request_id": number, "method": method, "path": scope["path"], "status": status}
            facts |= {"seconds": round(time.monotonic() - began, 4), **state["facts"]}
            if telemetry is not None and span is not None:
                facts["trace_id"] = f"{span.get_span_context().trace_id:032x}"
                route = scope["route"].path if "route" in scope else None
                telemetry.end(span, method=method, route=route, status=status, facts=facts)
            _log.info("request", extra=told(**facts))

    def _check(self, scope: Scope, state: dict[str, Any]) -> None:
        """Refuse a request of a wrong host, without a key, or with a body that is too large."""
        host = (header(scope, "host") or b"").decode("latin-1").lower()
        name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
        if self.access.hosts and name not in self.access.hosts:
            # A page of another site may reach a server on this machine under a name of its own.
            message = f"host: {name!r:.80} is not served; start the server with --allowed-host to serve it"
            raise ApiError(status=403, message=message, param="host", code="host_not_allowed")
        if self.access.keys and scope["path"] not in (*OPEN, *PLACES):
            state["client"] = "key " + self._key(scope)
        length = header(scope, "content-length")
        if length is not None and length.isdigit() and int(length) > self.limits.body_bytes:
            raise too_large(self.limits)

    def _key(self, scope: Scope) -> str:
        """Return a name for the key of a request.

        Raises:
            ApiError: it has none, or one that is not known.
        """
        given = header(scope, "x-api-key")
        bearer = header(scope, "authorization") or b""
        if given is None and bearer[:7].lower() == b"bearer ":
            given = bearer[7:].strip()
        # Hashes have one length, and comparing all of them takes the same time whichever it is.
        digest = hashlib.sha256(given or b"").digest()
        known = [hmac.compare_digest(digest, hashlib.sha256(key.encode()).digest()) for key in self.access.keys]
        if not any(known):
            message = "authorization: the API key is missing or wrong; send it as 'Authorization: Bearer KEY'"
            headers = {"WWW-Authenticate": "Bearer"}
            raise ApiError(status=401, message=message, code="invalid_api_key", headers=headers)
        return digest.hex()[:8]

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Return what receives a body of at most so many bytes in at most so much time."""
        left, whole = self.limits.body_bytes, False
        end = asyncio.get_running_loop().time() + self.limits.body_seconds

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal left, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                text = f"body: it did not arrive within {self.limits.body_seconds:g} seconds"
                raise ApiError(status=408, message=text, code="timeout", headers={"Connection": "close"}) from None
            if message["type"] == "http.request":
                left -= len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if left < 0:
                    raise too_large(self.limits)
            return message

        return bounded


def request_id(scope: Scope) -> str:
    """Return the number of a request: its own where it is one that a log can hold, else a new one.

    Args:
        scope: of the request.
    """
    given = (header(scope, "x-request-id") or b"").decode("latin-1")
    return given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else uuid.uuid4().hex


def too_large(limits: Limits) -> ApiError:
    """Return the error of a body that is too large."""
    message = f"body: it is larger than {limits.body_bytes} bytes"
    return ApiError(status=413, message=message, code="body_too_large", headers={"Connection": "close"})


async def refuse(error: ApiError, send: Send) -> None:
    """Send the response of an error.

    Args:
        error: why there is no other response.
        send: of the request.
    """
    body = written(error.body).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **error.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": False})
