"""Events on the wire, and what becomes of readers that leave or do not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from difflm.serving.sse import PING, ReaderGone, ReaderTooSlow, send_events, unless_gone, written


class Wire:
    """A client: reads everything, until it leaves or stops reading."""

    def __init__(self, *, reads: int = 10**9) -> None:
        self.reads, self.data, self.ended, self.left = reads, b"", False, asyncio.Event()

    async def send(self, message: Any) -> None:
        if self.reads == 0:
            await asyncio.sleep(60)
        self.reads -= 1
        self.data += message["body"]
        self.ended = not message["more_body"]

    async def receive(self) -> Any:
        await self.left.wait()
        return {"type": "http.disconnect"}


def chunks(
    values: list[dict[str, Any]], closed: list[bool], *, wait: float = 0
) -> AsyncGenerator[dict[str, Any], None]:
    async def made() -> AsyncGenerator[dict[str, Any], None]:
        try:
            for value in values:
                await asyncio.sleep(wait)
                yield value
        finally:
            closed.append(True)

    return made()


def run(body: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.wait_for(body(), 30))


def test_events_and_the_end() -> None:
    async def body() -> None:
        wire, closed = Wire(), []
        await send_events(wire.receive, wire.send, chunks([{"a": "\u00e9"}, {"b": 1}], closed), write_seconds=5)
        assert wire.data == 'data: {"a":"\u00e9"}\n\ndata: {"b":1}\n\ndata: [DONE]\n\n'.encode()
        assert wire.ended
        assert closed == [True]

    run(body)


def test_behind_an_error_nothing_follows() -> None:
    async def body() -> None:
        wire, closed = Wire(), []
        await send_events(wire.receive, wire.send, chunks([{"error": {}}], closed), write_seconds=5)
        assert wire.data == b'data: {"error":{}}\n\n'
        assert wire.ended

    run(body)


def test_silence_is_filled_with_comments() -> None:
    async def body() -> None:
        wire, closed = Wire(), []
        given = chunks([{"a": 1}], closed, wait=0.3)
        await send_events(wire.receive, wire.send, given, write_seconds=5, ping_seconds=0.05)
        assert wire.data.startswith(PING)
        assert wire.data.replace(PING, b"") == b'data: {"a":1}\n\ndata: [DONE]\n\n'

    run(body)


@pytest.mark.parametrize("wait", [0.02, 60])
def test_a_reader_that_leaves_ends_the_work(wait: float) -> None:
    async def body() -> None:
        wire, closed = Wire(), []
        asyncio.get_running_loop().call_later(0.1, wire.left.set)
        with pytest.raises(ReaderGone):
            await send_events(wire.receive, wire.send, chunks([{}] * 1000, closed, wait=wait), write_seconds=5)
        assert closed == [True]

    run(body)


def test_a_reader_that_does_not_read_is_given_up() -> None:
    async def body() -> None:
        wire, closed = Wire(reads=2), []
        with pytest.raises(ReaderTooSlow):
            await send_events(wire.receive, wire.send, chunks([{}] * 1000, closed), write_seconds=0.1)
        assert closed == [True]

    run(body)


def test_whole_answers_end_with_their_reader() -> None:
    async def body() -> None:
        wire, ended = Wire(), []

        async def work() -> int:
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(True)
            return 1

        asyncio.get_running_loop().call_later(0.1, wire.left.set)
        with pytest.raises(ReaderGone):
            await unless_gone(wire.receive, work())
        assert ended == [True]
        assert await unless_gone(Wire().receive, asyncio.sleep(0, 5)) == 5

    run(body)


def test_no_number_that_json_does_not_have() -> None:
    with pytest.raises(ValueError, match="JSON"):
        written({"a": float("nan")})
