"""Many clients at once, some of which leave, are slow or send nonsense: what they get, and what is left behind.

Every answer that its client waited for has to be the engine's own; afterwards the server holds nothing of the load: no
request, no cache, no task, no thread, no connection. After a quarter of the load everybody waits until the server is
idle, and objects and memory are counted; what the other three quarters add to them is a leak. The model computes in
float64, where the sums of a batch round like those of a single request as far as any token can tell.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.serving.wire import Response, exchange, post, post_chunks
from difflm.checkpoints.loading import LoadedModel
from difflm.decode.engine import Engine
from difflm.decode.request import SamplingParams
from difflm.serving.answers import Answer
from difflm.serving.limits import Limits
from difflm.serving.planning import Plan
from difflm.serving.server import Binding, Served
from difflm.serving.service import TEXT_THREADS, Service
from difflm.serving.tickets import Ticket

PATH = "/v1/completions"
KINDS = ("whole", "stream", "slow", "leave", "leave-stream", "large", "large-chunked", "invalid", "wrong")
WEIGHTS = (6, 8, 2, 2, 3, 1, 1, 1, 1)
BODY_BYTES = 100_000
OBJECTS = (Ticket, Plan, Answer)
CACHE_BYTES = 16 << 20
"""Full soon, so that old prompts have to make room, and memory that still grows is nobody's cache."""
MORE_MEGABYTES = 64.0
"""What the memory of a process may vary by, whatever it does."""


@dataclass(slots=True, kw_only=True)
class Report:
    """What happened.

    Attributes:
        requests: by kind.
        statuses: by kind and status.
        wrong: answers that were not the engine's, and statuses that should not have been.
        left: what was left behind, by name; empty if all is well.
        seconds: that it took.
        megabytes: memory of the idle process after the first quarter, and at the end.
    """

    requests: Counter[str] = field(default_factory=Counter)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    megabytes: tuple[float, float] = (0.0, 0.0)

    @property
    def lines(self) -> list[str]:
        """The report as text."""
        kinds = ", ".join(f"{name} {self.requests[name]}" for name in KINDS)
        told = [f"{sum(self.requests.values())} requests in {self.seconds:.1f} s: {kinds}"]
        told.append(
            f"memory when idle: {self.megabytes[0]:.0f} MB after a quarter, {self.megabytes[1]:.0f} MB at the end"
        )
        told += [f"WRONG: {each}" for each in self.wrong[:20]]
        told += [f"LEFT: {number} {name}" for name, number in self.left.items()]
        return told


class Host:
    """A server in a thread of this process, so that what it holds can be counted.

    Args:
        loaded: the model.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        limits = Limits(body_bytes=BODY_BYTES, write_seconds=60)
        self.service = Service(loaded, name="load", limits=limits, max_requests=16, cache_bytes=CACHE_BYTES)
        self.served = Served(self.service, Binding(port=0), on_start=self._began)
        self._started, self.port = threading.Event(), 0
        self._thread = threading.Thread(target=self.served.run, daemon=True)

    def _began(self, address: str) -> None:
        self.port = int(address.rpartition(":")[2])
        self._started.set()

    def __enter__(self) -> Host:
        self._thread.start()
        if not self._started.wait(120):
            raise RuntimeError("the server did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self.served.server.should_exit = True
        self._thread.join(60)

    def held(self) -> dict[str, int]:
        """Return what the server holds beside its own tasks."""
        bridge, loop = self.service.bridge, self.served._loop
        assert loop is not None, "it runs"

        async def count() -> int:
            return len(asyncio.all_tasks()) - 1

        tasks = asyncio.run_coroutine_threadsafe(count(), loop).result(60)
        gc.collect()
        found = Counter(type(each).__name__ for each in gc.get_objects() if type(each) in OBJECTS)
        return {
            "answers that are waited for": bridge.active,
            "answers in the queue": bridge.waiting,
            "answers in the engine": bridge.running,
            "tokens of cache that requests hold": bridge._engine.cache_use.running,
            "connections": len(self.served.transports),
            "tasks": tasks,
            "threads": threading.active_count(),
            **{f"objects of {kind.__name__}": found[kind.__name__] for kind in OBJECTS},
        }


def bodies(seed: int, count: int) -> list[dict[str, Any]]:
    """Return requests that differ in prompt, length, randomness and stop strings."""
    chance = random.Random(seed)
    words = ["in", "the", "beginning", "was", "a", "word", "light", "and"]
    found: list[dict[str, Any]] = []
    for number in range(count):
        prompt = " ".join(chance.choices(words, k=chance.randint(1, 20)))
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": chance.randint(1, 40), "seed": number}
        body["temperature"] = chance.choice([0.0, 0.7, 1.3])
        if chance.random() < 0.3:
            body["stop"] = chance.sample(words, 2)
        found.append(body)
    return found


def expected(loaded: LoadedModel, asked: Sequence[dict[str, Any]]) -> list[str]:
    """Return the engine's own answers, each decoded alone."""
    answers: list[str] = []
    for body in asked:
        params = SamplingParams(
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
            seed=body["seed"],
            stop=tuple(body.get("stop", ())),
        )
        answers.append(Engine(loaded).generate([body["prompt"]], params)[0].text or "")
    return answers


@dataclass(slots=True, kw_only=True)
class Load:
    """Clients of a server.

    Attributes:
        port: of the server.
        asked: bodies of sensible requests.
        answers: that they have to get.
        report: filled in as it goes.
        seed: of what the clients do; the number of a request decides alone, whoever sends it.
    """

    port: int
    asked: Sequence[dict[str, Any]]
    answers: Sequence[str]
    report: Report
    seed: int

    async def client(self, goes_on: Callable[[], bool]) -> None:
        """Send one request after another."""
        while goes_on():
            chance = random.Random(f"{self.seed} {sum(self.report.requests.values())}")
            [kind] = chance.choices(KINDS, WEIGHTS)
            number = chance.randrange(len(self.asked))
            self.report.requests[kind] += 1
            response = await self._send(kind, self.asked[number], chance)
            self.report.statuses[kind, response.status] += 1
            self._judge(kind, number, response)

    async def _send(self, kind: str, body: dict[str, Any], chance: random.Random) -> Response:
        leave = chance.randint(1, 2000)
        match kind:
            case "whole":
                return await exchange(self.port, post(PATH, body))
            case "stream" | "slow":
                return await exchange(self.port, post(PATH, {**body, "stream": True}), slow=kind == "slow")
            case "leave":
                long = {**body, "max_tokens": 400, "ignore_eos": True}
                return await self._impatient(post(PATH, long), chance.random() * 0.3)
            case "leave-stream":
                long = {**body, "max_tokens": 400, "ignore_eos": True, "stream": True}
                return await exchange(self.port, post(PATH, long), leave_after=leave)
            case "large":
                return await exchange(self.port, post(PATH, {**body, "prompt": "a" * (2 * BODY_BYTES)}))
            case "large-chunked":
                parts = [b"a" * 1000] * (2 * BODY_BYTES // 1000)
                return await exchange(self.port, post_chunks(PATH, [b'{"prompt": "', *parts, b'"}']))
            case "invalid":
                return await exchange(self.port, post(PATH, b'{"prompt": "in the", "max_tok'))
        return await exchange(self.port, post(PATH, {**body, "temperature": -1}))

    async def _impatient(self, request: bytes, seconds: float) -> Response:
        """Wait for a moment only."""
        try:
            async with asyncio.timeout(seconds):
                return await exchange(self.port, request)
        except TimeoutError:
            return Response()

    def _judge(self, kind: str, number: int, response: Response) -> None:
        large = kind.startswith("large")
        status = 413 if large else {"invalid": 400, "wrong": 400}.get(kind, 200)
        if kind.startswith("leave"):
            if response.status not in (0, 200):
                self.report.wrong.append(f"{kind}: status {response.status} {response.body[:200]!r}")
        elif response.status != status:
            # A body that is too large is refused while it is sent, which may reset the connection.
            if not (large and response.status == 0):
                self.report.wrong.append(f"{kind}: status {response.status} {response.body[:200]!r}")
        elif status == 200 and response.text != self.answers[number]:
            self.report.wrong.append(f"{kind}: {response.text!r} instead of {self.answers[number]!r}")


def run(
    loaded: LoadedModel,
    *,
    streams: int = 64,
    seconds: float | None = None,
    requests: int | None = None,
    different: int = 24,
    seed: int = 0,
    patience: float = 60.0,
) -> Report:
    """Load a server of a model and return what happened.

    Args:
        loaded: the model, in float64, with a tokenizer.
        streams: clients at once.
        seconds: how long; None: until `requests` have been sent.
        requests: how many; None: until the time is up.
        different: sensible requests.
        seed: of what the clients do.
        patience: seconds in which the server has to see that its clients are gone.
    """
    asked = bodies(seed, different)
    answers = expected(loaded, asked)
    report = Report()
    with Host(loaded) as host:
        load = Load(port=host.port, asked=asked, answers=answers, report=report, seed=seed)
        before, began = host.held(), time.monotonic()
        before["threads"] += TEXT_THREADS  # they start when they are needed

        def until(share: float) -> Callable[[], bool]:
            def goes_on() -> bool:
                sent, spent = sum(report.requests.values()), time.monotonic() - began
                return (sent / requests if requests else spent / (seconds or 1)) < share

            return goes_on

        asyncio.run(_clients(load, streams, until(0.25)))
        report.left = left_over(host, before, patience)
        early, sent = census(), sum(report.requests.values())
        asyncio.run(_clients(load, streams, until(1)))
        report.left |= left_over(host, before, patience)
        late = census()
        report.left |= grown(early, late, sum(report.requests.values()) - sent)
        report.seconds = time.monotonic() - began
        report.megabytes = (early[0], late[0])
    return report


async def _clients(load: Load, count: int, goes_on: Callable[[], bool]) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(load.client(goes_on))


def left_over(host: Host, before: dict[str, int], seconds: float) -> dict[str, int]:
    """Return what a server holds more than before, once it has had so much time to see that its clients are gone."""
    end = time.monotonic() + seconds
    while True:
        more = {name: number - before[name] for name, number in host.held().items() if number > before[name]}
        if not more or time.monotonic() > end:
            return more
        time.sleep(0.05)


def census() -> tuple[float, Counter[str]]:
    """Return the memory of this process, MB, and how many objects of each type it holds."""
    gc.collect()
    return megabytes(), Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())


def grown(early: tuple[float, Counter[str]], late: tuple[float, Counter[str]], requests: int) -> dict[str, int]:
    """Return what has grown with the number of requests: an object for every fourth of them, or memory.

    Args:
        early: census of an idle server.
        late: another one.
        requests: between them.
    """
    enough = max(requests // 4, 50)
    found = {f"more of {name}": late[1][name] - number for name, number in early[1].items()}
    found |= {f"more of {name}": number for name, number in late[1].items() if name not in early[1]}
    found = {name: number for name, number in found.items() if number >= enough}
    if late[0] - early[0] > MORE_MEGABYTES:
        found["MB of memory more"] = round(late[0] - early[0])
    return found


def megabytes() -> float:
    """Return the memory of this process: what it holds now where the system tells, else the most so far."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (1 << 20) if sys.platform == "darwin" else used / 1024


def tiny_model(folder: Path) -> LoadedModel:
    """Write a random model of 256 byte tokens into a folder, and load it in float64."""
    from difflm.checkpoints.convert import convert
    from difflm.checkpoints.loading import load_model
    from tests.standins import write_parent

    convert(write_parent(folder / "parent"), folder / "tiny", block_size=8)
    return load_model(folder / "tiny", dtype="float64")
