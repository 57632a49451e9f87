"""Answers within the server's times; failures in the form of the place where they happen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from difflm.checkpoints.loading import LoadedModel
from difflm.decode.engine import Engine
from difflm.errors import RequestError
from difflm.serving.answering import chunks, error_of, whole
from difflm.serving.bridge import Bridge
from difflm.serving.errors import ApiError, of_field
from difflm.serving.failures import EngineFailed, TimedOut
from difflm.serving.limits import Defaults, Limits
from difflm.serving.planning import Plan, Planner
from difflm.serving.tickets import Ticket
from tests.serving.test_bridge import Gate

Asked = Callable[..., tuple[Plan, list[Ticket]]]


def with_bridge(
    loaded: LoadedModel, body: Callable[[Bridge, Gate, Asked], Awaitable[None]], *, gated: bool = False, **options: Any
) -> None:
    planner = Planner(loaded=loaded, name="tiny", limits=Limits(), defaults=Defaults(), cache_tokens=10_000)

    async def run() -> None:
        gate = Gate()
        if not gated:
            gate.open.set()
        bridge = Bridge(lambda: gate.watch(Engine(loaded, **options)))
        await bridge.start()

        def ask(**fields: Any) -> tuple[Plan, list[Ticket]]:
            plan = planner.text(json.dumps({"prompt": "in the", "max_tokens": 20, **fields}).encode())
            return plan, bridge.submit(plan.orders, client="a", request=plan.form.id)

        try:
            await asyncio.wait_for(body(bridge, gate, ask), 60)
            assert bridge.active == 0
        finally:
            gate.let_all_through()
            await bridge.stop()

    asyncio.run(run())


def test_one_answer_that_fails_fails_the_request_and_gives_the_others_up(loaded: LoadedModel) -> None:
    async def body(bridge: Bridge, gate: Gate, ask: Asked) -> None:
        plan, tickets = ask(n=3)
        gate.fail.append(ValueError("broken"))
        gate.let_all_through()
        with pytest.raises(EngineFailed):
            await whole(plan, tickets, bridge, Limits())
        assert bridge.active == 0
        plan, tickets = ask(n=3)
        assert len((await whole(plan, tickets, bridge, Limits()))["choices"]) == 3

    with_bridge(loaded, body, gated=True, max_requests=2)


def test_in_a_stream_an_error_is_the_last_chunk(loaded: LoadedModel) -> None:
    async def body(bridge: Bridge, gate: Gate, ask: Asked) -> None:
        plan, tickets = ask(stream=True)
        told = chunks(plan, tickets, bridge, Limits())
        step = asyncio.ensure_future(anext(told))
        await gate.one_forward()
        gate.fail.append(ValueError("secret"))
        gate.let_all_through()
        found = [await step, *[each async for each in told]]
        assert found[-1]["error"]["type"] == "server_error"
        assert "secret" not in json.dumps(found)
        assert sum("error" in each for each in found) == 1

    with_bridge(loaded, body, gated=True)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(queue_seconds=0.2), "it was not begun within 0.2 seconds"),
        (Limits(answer_seconds=0.3), "it was not begun within 0.3 seconds"),
    ],
)
def test_waiting_has_an_end(limits: Limits, message: str, loaded: LoadedModel) -> None:
    async def body(bridge: Bridge, gate: Gate, ask: Asked) -> None:
        plan, tickets = ask()
        late, late_tickets = ask()
        with pytest.raises(TimedOut, match=message):
            await whole(late, late_tickets, bridge, limits)
        assert bridge.waiting == 0
        gate.let_all_through()
        await whole(plan, tickets, bridge, Limits())

    with_bridge(loaded, body, gated=True, max_requests=1)


def test_answering_has_an_end(loaded: LoadedModel) -> None:
    async def body(bridge: Bridge, gate: Gate, ask: Asked) -> None:
        plan, tickets = ask()
        await gate.one_forward()
        with pytest.raises(TimedOut, match=r"it was not finished within 0\.5 seconds"):
            await whole(plan, tickets, bridge, Limits(queue_seconds=0.1, answer_seconds=0.5))

    with_bridge(loaded, body, gated=True)


def test_a_stream_that_nobody_reads_any_more_leaves_the_engine(loaded: LoadedModel) -> None:
    async def body(bridge: Bridge, gate: Gate, ask: Asked) -> None:
        plan, tickets = ask(n=2, stream=True)
        told = chunks(plan, tickets, bridge, Limits())
        await gate.one_forward()
        step = asyncio.ensure_future(anext(told))
        await gate.one_forward()
        step.cancel()
        await asyncio.gather(step, return_exceptions=True)
        await told.aclose()
        assert bridge.active == 0
        gate.let_all_through()
        while bridge.running:
            await asyncio.sleep(0.01)
        assert gate.engines[0].cache_use.running == 0

    with_bridge(loaded, body, gated=True)


def test_defects_are_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    error = error_of(KeyError("secret"))
    assert (error.status, error.message) == (500, "internal error")
    assert "secret" in caplog.text
    assert error_of(RequestError("n: 5 is too much")).param == "n"
    mine = of_field("a", "b")
    assert error_of(mine) is mine
    assert isinstance(mine, ApiError)
