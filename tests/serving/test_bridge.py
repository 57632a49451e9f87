"""The bridge: answers are the engine's own, whoever is beside them; nothing is left behind, whatever goes wrong."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from difflm.checkpoints.loading import LoadedModel
from difflm.decode.engine import Engine, generate
from difflm.decode.events import Committed, Denoised, Finished
from difflm.decode.request import SamplingParams
from difflm.errors import RequestError
from difflm.models.cache import bytes_per_token
from difflm.serving.bridge import Bridge, QueueLimits
from difflm.serving.failures import Draining, EngineDead, EngineFailed, Overloaded
from difflm.serving.tickets import Job, Order, Ticket
from tests.decode.tiny import tiny

LONG = SamplingParams(max_new_tokens=80, threshold=1.0)


class Gate:
    """Lets an engine's forwards through one by one, or all of them."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.turns = threading.Semaphore(0)
        self.done = threading.Semaphore(0)
        self.fail: list[Exception] = []
        self.engines: list[Engine] = []

    def watch(self, engine: Engine) -> Engine:
        run = engine.runner.run

        def gated(works: Any) -> Any:
            if not self.open.is_set():
                self.turns.acquire()
            if self.fail:
                raise self.fail.pop(0)
            try:
                return run(works)
            finally:
                self.done.release()

        engine.runner.run = gated  # type: ignore[method-assign]
        self.engines.append(engine)
        return engine

    def let_all_through(self) -> None:
        self.open.set()
        self.turns.release()

    async def one_forward(self) -> None:
        self.turns.release()
        await asyncio.to_thread(self.done.acquire)


def order(params: SamplingParams | None = None, prompt: tuple[int, ...] = (1, 2, 3), **facts: Any) -> Order:
    params = params or SamplingParams(max_new_tokens=12)
    return Order(prompt=prompt, params=params, capacity=len(prompt) + params.max_new_tokens, **facts)


def one(bridge: Bridge, asked: Order | Job, client: str = "a", request: object = None) -> Ticket:
    return bridge.submit([asked], client=client, request=request or object())[0]


def running(
    body: Callable[[Bridge, Gate], Awaitable[None]],
    *,
    loaded: LoadedModel | None = None,
    gated: bool = False,
    limits: QueueLimits | None = None,
    on_dead: Callable[[], None] = lambda: None,
    **options: Any,
) -> None:
    """Run `body` with a bridge; check that nothing is left of its requests."""
    loaded = loaded or tiny()

    async def run() -> None:
        gate = Gate()
        if not gated:
            gate.open.set()
        bridge = Bridge(lambda: gate.watch(Engine(loaded, **options)), limits=limits, on_dead=on_dead)
        await bridge.start()
        try:
            await asyncio.wait_for(body(bridge, gate), 60)
        finally:
            gate.let_all_through()
            await bridge.stop()
        assert bridge.active == 0

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def test_answers_together_are_those_of_the_engine_alone() -> None:
    loaded = tiny()
    prompts = [tuple(range(1, 2 + number)) for number in range(9)]
    params = [SamplingParams(max_new_tokens=5 + number, temperature=number % 2, seed=number) for number in range(9)]

    async def body(bridge: Bridge, gate: Gate) -> None:
        orders = [order(each, prompt) for each, prompt in zip(params, prompts, strict=True)]
        tickets = [one(bridge, each) for each in orders[:4]]
        tickets += bridge.submit(orders[4:], client="b", request="r")
        found = await asyncio.gather(*(ticket.completion() for ticket in tickets))
        for completion, prompt, each in zip(found, prompts, params, strict=True):
            [expected] = generate(loaded, [prompt], each)
            assert completion.tokens == expected.tokens
            assert completion.forwards == expected.forwards
        await until(lambda: bridge.running == 0)
        assert bridge.counts.tokens == sum(len(each.tokens) for each in found)
        assert gate.engines[0].cache_use.running == 0

    running(body, loaded=loaded, max_requests=3)


def test_requests_join_those_that_run() -> None:
    async def body(bridge: Bridge, gate: Gate) -> None:
        first = one(bridge, order(LONG))
        await gate.one_forward()
        second = one(bridge, order())
        await gate.one_forward()
        await until(lambda: bridge.running == 2)
        gate.let_all_through()
        await second.completion()
        assert first.finished is None
        bridge.cancel(first)

    running(body, gated=True)


def test_only_final_tokens_are_told_unless_all_is_asked_for() -> None:
    async def body(bridge: Bridge, gate: Gate) -> None:
        plain, watched = bridge.submit([order(), order(watched=True)], client="a", request="r")
        seen = [event async for event in plain.events()]
        everything = [event async for event in watched.events()]
        assert {type(each) for each in seen} == {Committed, Finished}
        assert Denoised in {type(each) for each in everything}
        for events in (seen, everything):
            last = events[-1]
            assert isinstance(last, Finished)
            tokens = [token for each in events if isinstance(each, Committed) for token in each.tokens]
            assert tokens == last.completion.tokens

    running(body)


def test_clients_take_turns() -> None:
    async def body(bridge: Bridge, gate: Gate) -> None:
        blocker = one(bridge, order())
        many = [one(bridge, order(), client="many") for _ in range(4)]
        single = one(bridge, order(), client="single")
        gate.let_all_through()
        await asyncio.gather(*(each.completion() for each in (blocker, *many, single)))
        starts = sorted([*many, single], key=lambda each: each.started or 0)
        assert starts.index(single) <= 1

    running(body, gated=True, max_requests=1)


def test_a_full_queue_refuses_all_of_a_request_and_says_when_to_return() -> None:
    async def body(bridge: Bridge, gate: Gate) -> None:
        kept = [one(bridge, order()), one(bridge, order())]
        await until(lambda: bridge.running == 1)
        with pytest.raises(Overloaded, match="1 answers of 15 tokens are waiting, and 2 of 100 may") as caught:
            bridge.submit([order(), order()], client="b", request="r")
        assert 1 <= caught.value.retry_after <= 120
        assert bridge.waiting == 1
        with pytest.raises(Overloaded):
            one(bridge, order(SamplingParams(max_new_tokens=90)))  # one more would fit, but not so many tokens
        assert bridge.counts.refused == 3
        kept.append(one(bridge, order()))
        gate.let_all_through()
        await asyncio.gather(*(each.completion() for each in kept))

    running(body, gated=True, max_requests=1, limits=QueueLimits(requests=2, tokens=100))


def test_cancelled_in_the_queue_it_never_reaches_the_engine() -> None:
    async def body(bridge: Bridge, gate: Gate) -> None:
        first, second = one(bridge, order()), one(bridge, order())
        await until(lambda: bridge.running == 1)
        bridge.cancel(second)
        assert (bridge.waiting, bridge.waiting_tokens) == (0, 0)
        gate.let_all_through()
        await first.completion()
        assert second.started is None
        assert bridge.counts.cancelled == 1

    running(body, gated=True, max_requests=1)


@pytest.mark.parametrize("forwards", [0, 1, 3, 6])
def test_cancelled_while_it_runs_it_is_out_before_the_next_forward(forwards: int) -> None:
    """Zero forwards: handed over and not started; one: the prompt is being read; then blocks."""
    prompt = tuple(range(1, 9)) * 2

    async def body(bridge: Bridge, gate: Gate) -> None:
        doomed, other = bridge.submit([order(LONG, prompt), order(LONG)], client="a", request="r")
        await until(lambda: bridge.running == 2)
        for _ in range(forwards):
            await gate.one_forward()
        bridge.cancel(doomed)
        bridge.cancel(doomed)
        await gate.one_forward()  # the one that was under way
        await until(lambda: bridge.running == 1)
        use = gate.engines[0].cache_use
        assert use.running == len((1, 2, 3)) + 80 + 1  # up to a whole block
        gate.let_all_through()
        completion = await other.completion()
        assert completion.tokens == generate(tiny(), [(1, 2, 3)], LONG)[0].tokens
        assert bridge.counts.cancelled == 1

    running(body, gated=True, prefill_tokens=4)


def test_a_failed_forward_fails_its_batch_and_nothing_else() -> None:
    async def body(bridge: Bridge, gate: Gate) -> None:
        lost = bridge.submit([order(), order()], client="a", request="r")
        await until(lambda: bridge.running == 2)
        waiting = one(bridge, order())
        gate.fail.append(ValueError("of the model"))
        gate.let_all_through()
        for ticket in lost:
            with pytest.raises(EngineFailed, match="the engine failed"):
                await ticket.completion()
        completion = await waiting.completion()
        assert completion.tokens == generate(tiny(), [(1, 2, 3)], SamplingParams(max_new_tokens=12))[0].tokens
        assert (bridge.state, bridge.counts.failures, len(gate.engines)) == ("running", 1, 2)

    running(body, gated=True, max_requests=2)


def test_an_engine_that_always_fails_is_given_up_and_everybody_is_told() -> None:
    told: list[bool] = []

    async def body(bridge: Bridge, gate: Gate) -> None:
        gate.fail += [ValueError("of the device")] * 3
        tickets = [one(bridge, order()) for _ in range(5)]
        gate.let_all_through()
        found = await asyncio.gather(*(each.completion() for each in tickets), return_exceptions=True)
        assert [type(each) for each in found] == [EngineFailed] * 3 + [EngineDead] * 2
        assert bridge.state == "dead"
        assert told == [True]
        with pytest.raises(EngineDead):
            one(bridge, order())

    running(body, gated=True, max_requests=1, on_dead=lambda: told.append(True))


def test_failures_between_successes_are_not_the_end() -> None:
    async def body(bridge: Bridge, gate: Gate) -> None:
        for _ in range(5):
            gate.fail.append(ValueError("now and then"))
            with pytest.raises(EngineFailed):
                await one(bridge, order()).completion()
            await one(bridge, order()).completion()
        assert bridge.state == "running"

    running(body)


def test_an_engine_that_cannot_be_made_is_said_at_the_start() -> None:
    async def run() -> None:
        bridge = Bridge(lambda: Engine(tiny(), cache_bytes=1))
        with pytest.raises(RequestError, match="cache_bytes"):
            await bridge.start()
        assert bridge.state == "dead"
        await bridge.stop()

    asyncio.run(run())


def test_what_the_engine_refuses_is_raised_where_it_is_awaited() -> None:
    async def body(bridge: Bridge, gate: Gate) -> None:
        bad, good = one(bridge, order(prompt=(99,))), one(bridge, order())
        with pytest.raises(RequestError, match="prompt: id 99 at position 0"):
            await bad.completion()
        await good.completion()

    running(body)


def test_draining_finishes_what_runs_and_takes_nothing_new() -> None:
    async def body(bridge: Bridge, gate: Gate) -> None:
        tickets = [one(bridge, order()) for _ in range(3)]
        await until(lambda: bridge.running == 1)
        bridge.drain()
        with pytest.raises(Draining):
            one(bridge, order())
        gate.let_all_through()
        found = await asyncio.gather(*(each.completion() for each in tickets))
        await bridge.idle()
        assert [each.num_tokens for each in found] == [12, 12, 12]

    running(body, gated=True, max_requests=1)


def test_stopping_fails_what_is_left() -> None:
    async def body(bridge: Bridge, gate: Gate) -> None:
        tickets = [one(bridge, order(LONG)) for _ in range(2)]
        await until(lambda: bridge.running == 1)
        gate.let_all_through()
        await bridge.stop()
        for ticket in tickets:
            with pytest.raises(Draining):
                await ticket.completion()

    running(body, gated=True, max_requests=1)


def test_jobs_run_in_the_thread_between_forwards_and_their_failures_are_theirs() -> None:
    def fails() -> None:
        raise ValueError("of the computation")

    async def body(bridge: Bridge, gate: Gate) -> None:
        answer = one(bridge, order())
        job, bad = one(bridge, Job(compute=threading.get_ident, cost=3)), one(bridge, Job(compute=fails, cost=3))
        assert await job.value() != threading.get_ident()
        with pytest.raises(EngineFailed):
            await bad.value()
        await answer.completion()
        assert len(gate.engines) == 1

    running(body)


def test_more_than_the_cache_holds_waits_here_and_not_in_the_engine() -> None:
    async def body(bridge: Bridge, gate: Gate) -> None:
        each = order(SamplingParams(max_new_tokens=29))
        tickets = bridge.submit([each] * 3, client="a", request="r")
        await until(lambda: bridge.running == 2)
        assert bridge.waiting == 1
        assert not gate.engines[0].scheduler.waiting or gate.engines[0].scheduler.running == {}
        gate.let_all_through()
        await asyncio.gather(*(ticket.completion() for ticket in tickets))

    loaded = tiny()
    room = bytes_per_token(loaded.model.config, loaded.model.embedding.weight.dtype) * 64
    running(body, gated=True, loaded=loaded, cache_bytes=room)
