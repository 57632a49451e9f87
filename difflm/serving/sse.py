"""Server-sent events over ASGI: a stream that ends when its reader is gone, or too slow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
PING = b": ping\n\n"


class ReaderGone(Exception):
    """The client has closed the connection."""


class ReaderTooSlow(Exception):
    """The client has not made room for more in time."""


def written(value: Any) -> str:
    """Return a JSON value on one line; NaN and infinities are defects."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


async def until_gone(receive: Receive) -> None:
    """Return when the client has closed the connection.

    Args:
        receive: of the request, whose body has been read.
    """
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, work: Awaitable[Any]) -> Any:
    """Return what an awaitable returns; it is cancelled as soon as the client is gone.

    Args:
        receive: of the request, whose body has been read.
        work: to be done.

    Raises:
        ReaderGone: nobody waits for it any more.
    """
    gone, task = asyncio.ensure_future(until_gone(receive)), asyncio.ensure_future(work)
    try:
        await asyncio.wait({gone, task}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ReaderGone
        return task.result()
    finally:
        for each in (gone, task):
            each.cancel()
        await asyncio.gather(gone, task, return_exceptions=True)


async def send_events(
    receive: Receive,
    send: Send,
    chunks: AsyncGenerator[dict[str, Any], None],
    *,
    write_seconds: float,
    ping_seconds: float = 15.0,
) -> None:
    """Send chunks as events, then `[DONE]`; behind an error nothing follows.

    Args:
        receive: of the request, whose body has been read.
        send: of the response, whose head has been sent.
        chunks: to be sent; closed at the end, however it comes.
        write_seconds: for the client to make room.
        ping_seconds: of silence, after which a comment shows that the connection stands.

    Raises:
        ReaderGone: the client has closed the connection.
        ReaderTooSlow: it does not read.
    """

    async def write(data: bytes, *, more: bool = True) -> None:
        try:
            async with asyncio.timeout(write_seconds):
                await send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError:
            raise ReaderTooSlow from None

    gone = asyncio.ensure_future(until_gone(receive))
    step = asyncio.ensure_future(anext(chunks, None))
    try:
        failed = False
        while True:
            await asyncio.wait({gone, step}, timeout=ping_seconds, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise ReaderGone
            if not step.done():
                await write(PING)
                continue
            chunk = step.result()
            if chunk is None:
                break
            failed = "error" in chunk
            await write(f"data: {written(chunk)}\n\n".encode())
            step = asyncio.ensure_future(anext(chunks, None))
        await write(b"" if failed else b"data: [DONE]\n\n", more=False)
    finally:
        for each in (gone, step):
            each.cancel()
        await asyncio.gather(gone, step, return_exceptions=True)
        await chunks.aclose()
