"""Requests over plain sockets, so that a client can be slow, wrong, or gone."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

HOST = "127.0.0.1"
_TEXT = re.compile(rb'"(?:content|text)":\s*"[^"]')
"""Text in an event; the first one of a conversation has an empty one."""


@dataclass(slots=True)
class Response:
    """What came back.

    Attributes:
        status: of HTTP; 0 where nothing came.
        body: without the framing of chunks.
        first: seconds until the first event with text; None where there was none.
        seconds: until the end.
    """

    status: int = 0
    body: bytes = b""
    first: float | None = None
    seconds: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    @property
    def value(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of a stream, without its end and without what only keeps the connection alive."""
        # An event is one line here, however a server ends its lines; JSON has no line ends of its own inside.
        lines = self.body.decode().split("\n")
        return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]

    @property
    def text(self) -> str:
        """The text of the first answer, whole or streamed, of a conversation or of a prompt."""
        if self.body.startswith(b"{"):
            choice = self.value["choices"][0]
            return choice["text"] if "text" in choice else choice["message"]["content"]
        found = (_text(choice) for event in self.events for choice in event.get("choices", ()))
        return "".join(found)


def _text(choice: dict[str, Any]) -> str:
    return choice["text"] if "text" in choice else choice["delta"].get("content") or ""


def post(path: str, body: Any) -> bytes:
    """Return a POST request as it goes over the wire; bytes are sent as they are, anything else as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def post_chunks(path: str, parts: Iterable[bytes]) -> bytes:
    """Return a POST request whose body comes in chunks, without saying how long it is."""
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + body + b"0\r\n\r\n"


async def exchange(port: int, request: bytes, *, slow: bool = False, leave_after: int | None = None) -> Response:
    """Return the response to a request.

    Args:
        port: of the server on this machine.
        request: head and body.
        slow: read a few bytes at a time, with pauses, through small buffers.
        leave_after: bytes after which the connection is cut.
    """
    response = Response()
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.setblocking(False)
    if slow:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    await asyncio.get_running_loop().sock_connect(connection, (HOST, port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=2048 if slow else 1 << 16)
    data = bytearray()
    try:
        writer.write(request)
        if not slow:
            await writer.drain()
        while part := await reader.read(64 if slow else 1 << 16):
            data += part
            if response.first is None and _TEXT.search(data):
                response.first = time.perf_counter() - response.began
            if leave_after is not None and len(data) >= leave_after:
                break
            if slow:
                await asyncio.sleep(0.001)
    except ConnectionError:
        pass  # a body that is refused before it is whole
    finally:
        writer.transport.abort()
    response.seconds = time.perf_counter() - response.began
    response.status, response.body = parsed(bytes(data))
    return response


def parsed(data: bytes) -> tuple[int, bytes]:
    """Return status and body of a response, perhaps cut short."""
    head, _, body = data.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    if b"transfer-encoding: chunked" in head.lower():
        body = unchunked(body)
    return status, body


def unchunked(data: bytes) -> bytes:
    """Return what a chunked body holds, as far as it has come."""
    found, place = bytearray(), 0
    while (end := data.find(b"\r\n", place)) >= 0:
        size = int(data[place:end].split(b";")[0] or b"0", 16)
        if size == 0:
            break
        found += data[end + 2 : end + 2 + size]
        place = end + 2 + size + 2
    return bytes(found)
