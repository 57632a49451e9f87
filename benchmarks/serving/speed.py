"""Throughput, latency and time to the first text against the number of clients: engine, server, and a peer's server.

The same conversations go to every system, by the same client, in turn: in each round every system serves every number
of clients once, in an order that changes. Each client sends its next conversation as soon as it has the answer. Tokens
are counted by one tokenizer, that of our model, over the text that came back: servers count in different ways.
"""

from __future__ import annotations

import asyncio
import math
import random
import shlex
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.lossless.records import Results, Row, table
from benchmarks.serving.wire import exchange, post
from difflm.checkpoints.loading import LoadedModel
from difflm.decode.engine import Engine
from difflm.decode.events import Committed, Finished
from difflm.decode.request import SamplingParams
from difflm.errors import DifflmError

QUESTIONS = (
    "Explain why the sky is blue.",
    "Write a short story about a lighthouse keeper.",
    "How does a bicycle stay upright?",
    "List five uses of a paper clip and explain each of them.",
    "What is the difference between weather and climate?",
    "Describe how bread is made, step by step.",
    "Write a letter to a friend about a journey by train.",
    "Why do leaves change their colour in autumn?",
)
PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One answer.

    Attributes:
        text: of it.
        first: seconds until text came; None where none came.
        seconds: until its end.
    """

    text: str
    first: float | None
    seconds: float


class System(Protocol):
    """What answers conversations."""

    name: str

    def answer(self, questions: Sequence[str], clients: int, most: int) -> list[Answered]:
        """Answer questions in order, so many at once, with at most so many tokens each."""
        ...


@dataclass(slots=True)
class Ours:
    """The engine in this process, without a server.

    Attributes:
        loaded: the model.
    """

    loaded: LoadedModel
    name: str = "engine"

    def answer(self, questions: Sequence[str], clients: int, most: int) -> list[Answered]:
        """See `System`."""
        engine = Engine(self.loaded, max_requests=max(clients, 1), prefix_caching=False)
        params, found = SamplingParams(max_new_tokens=most), dict[int, Answered]()
        left, running = list(enumerate(questions)), dict[int, tuple[int, float]]()
        first: dict[int, float] = {}
        while left or running:
            while left and len(running) < clients:
                number, question = left.pop(0)
                began = time.perf_counter()
                prompt = self.loaded.encode_chat([{"role": "user", "content": question}])
                running[engine.submit(prompt, params)] = (number, began)
            for event in engine.step():
                number, began = running[event.request_id]
                if isinstance(event, Committed) and event.tokens:
                    first.setdefault(number, time.perf_counter() - began)
                if isinstance(event, Finished):
                    del running[event.request_id]
                    seconds = time.perf_counter() - began
                    text = event.completion.text or ""
                    found[number] = Answered(text=text, first=first.get(number), seconds=seconds)
        return [found[number] for number in range(len(questions))]


@dataclass(slots=True)
class Remote:
    """A server on this machine that speaks chat completions.

    Attributes:
        name: for the tables.
        port: where it listens.
        model: that it is asked for.
    """

    name: str
    port: int
    model: str

    def answer(self, questions: Sequence[str], clients: int, most: int) -> list[Answered]:
        """See `System`."""
        return asyncio.run(self._answer(questions, clients, most))

    async def _answer(self, questions: Sequence[str], clients: int, most: int) -> list[Answered]:
        left, found = list(enumerate(questions)), dict[int, Answered]()

        async def client() -> None:
            while left:
                number, question = left.pop(0)
                found[number] = await self._one(question, most)

        await asyncio.gather(*(client() for _ in range(clients)))
        return [found[number] for number in range(len(questions))]

    async def _one(self, question: str, most: int) -> Answered:
        messages = [{"role": "user", "content": question}]
        body = {"model": self.model, "messages": messages, "max_tokens": most, "temperature": 0, "stream": True}
        response = await exchange(self.port, post(PATH, body))
        if response.status != 200 or any("error" in event for event in response.events):
            raise DifflmError(f"{self.name}: status {response.status}, {response.body[-300:]!r}")
        return Answered(text=response.text, first=response.first, seconds=response.seconds)


@contextmanager
def started(command: Sequence[str], *, name: str, model: str, port: int, seconds: float = 600) -> Iterator[Remote]:
    """Run a server while the context lasts; it is there once it answers a conversation.

    Args:
        command: words that start it.
        name: for the tables.
        model: that it is asked for.
        port: where it listens.
        seconds: that its start may take.

    Raises:
        DifflmError: it ended, or does not answer.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    said: list[str] = []
    listening = threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True)
    listening.start()
    remote, end = Remote(name, port, model), time.monotonic() + seconds
    try:
        while True:
            if process.poll() is not None:
                listening.join(10)
                tail = "".join(said[-15:])
                raise DifflmError(f"{name}: {shlex.join(command)} ended with {process.returncode}\n{tail}")
            try:
                remote.answer(["Hello"], 1, 4)
                break
            except (OSError, DifflmError) as error:
                if time.monotonic() > end:
                    raise DifflmError(f"{name}: no answer in {seconds:g} seconds ({error})") from None
                time.sleep(0.5)
        yield remote
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def measure(
    systems: Sequence[System],
    results: Results,
    *,
    clients: Sequence[int],
    rounds: int,
    requests: int,
    most: int,
    count: Callable[[str], int],
    seed: int = 0,
) -> None:
    """Measure what is not in the results yet, a row for each system, number of clients and round.

    Args:
        systems: to compare.
        results: to add to.
        clients: numbers of them.
        rounds: in each of which everything is measured once.
        requests: of each measurement, or twice the clients, if these are more.
        most: tokens of an answer.
        count: tokens of a text.
        seed: of the order.
    """
    done = results.done("speed", "system", "clients", "round")
    for number in range(rounds):
        for many in clients:
            order = list(systems)
            random.Random(f"{seed} {number} {many}").shuffle(order)
            for system in order:
                if (system.name, many, number) in done:
                    continue
                questions = [QUESTIONS[(number + place) % len(QUESTIONS)] for place in range(max(requests, 2 * many))]
                began = time.perf_counter()
                answers = system.answer(questions, many, most)
                about = {"kind": "speed", "system": system.name, "clients": many, "round": number}
                results.add({**about, **figures(answers, time.perf_counter() - began, count)})


def figures(answers: Sequence[Answered], seconds: float, count: Callable[[str], int]) -> Row:
    """Return the figures of one measurement.

    Args:
        answers: all of them.
        seconds: from the first request to the last answer.
        count: tokens of a text.
    """
    first = [each.first for each in answers if each.first is not None]
    return {
        "answers": len(answers),
        "tokens": sum(count(each.text) for each in answers),
        "seconds": seconds,
        "latency": [each.seconds for each in answers],
        "first": first,
    }


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest value that at least this share of the values does not exceed; None of none."""
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1] if values else None


def summary(rows: Sequence[Row]) -> str:
    """Return the table: medians of rounds, percentiles over the answers of all rounds, ratios round by round."""
    speeds = [row for row in rows if row.get("kind") == "speed"]
    names = list(dict.fromkeys(row["system"] for row in speeds))
    lines: list[Sequence[Any]] = []
    for many in sorted({row["clients"] for row in speeds}):
        rates = {
            name: {row["round"]: row["tokens"] / row["seconds"] for row in speeds if _is(row, name, many)}
            for name in names
        }
        for name in names:
            mine = [row for row in speeds if _is(row, name, many)]
            if not mine:
                continue
            latency = [value for row in mine for value in row["latency"]]
            first = [value for row in mine for value in row["first"]]
            shared = [each for each in rates[name] if each in rates[names[0]] and rates[names[0]][each] > 0]
            ratios = [rates[name][each] / rates[names[0]][each] for each in shared]
            cells = [many, name, statistics.median(rates[name].values()), statistics.median(ratios) if ratios else None]
            lines.append([*cells, *(percentile(each, p) for each in (latency, first) for p in (0.5, 0.99))])
    head = ["clients", "system", "tokens/s", f"of {names[0]}" if names else "ratio"]
    return table([*head, "latency p50 s", "p99", "first text p50 s", "p99"], lines)


def _is(row: Row, name: str, many: int) -> bool:
    return row["system"] == name and row["clients"] == many


def own_command(model: Path, port: int, threads: int, more: Sequence[str] = ()) -> list[str]:
    """Return the words that start our server."""
    words = [sys.executable, "-m", "difflm", "serve", str(model), "--port", str(port), "--threads", str(threads)]
    return [*words, "--name", "model", "--no-prefix-caching", "--log-level", "error", *more]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another server.

    Attributes:
        name: for the tables.
        command: that starts it, with `{port}` where the port goes.
        model: that it is asked for.
    """

    name: str
    command: str
    model: str

    @classmethod
    def of(cls, text: str) -> Peer:
        """Return the peer of `NAME,MODEL,COMMAND`.

        Raises:
            DifflmError: another form, or a command without `{port}`.
        """
        parts = [part.strip() for part in text.split(",", 2)]
        if len(parts) != 3 or not all(parts) or "{port}" not in parts[2]:
            raise DifflmError(f"--peer: {text!r:.80} is not NAME,MODEL,COMMAND with {{port}} in the command")
        return cls(name=parts[0], model=parts[1], command=parts[2])


@contextmanager
def all_of(loaded: LoadedModel, model: Path, threads: int, peers: Sequence[Peer]) -> Iterator[list[System]]:
    """Run our server and the peers' while the context lasts; yields the systems, the engine first."""
    with ExitStack() as stack:
        port = free_port()
        own = started(own_command(model, port, threads), name="difflm serve", model="model", port=port)
        systems: list[System] = [Ours(loaded), stack.enter_context(own)]
        for peer in peers:
            port = free_port()
            words = shlex.split(peer.command.replace("{port}", str(port)))
            systems.append(stack.enter_context(started(words, name=peer.name, model=peer.model, port=port)))
        yield systems


def subject(given: Any, peers: Sequence[Peer]) -> dict[str, Any]:
    """Return what a measurement depends on, beside its systems and numbers of clients."""
    about = {"command": "speed", "model": str(given.model), "threads": given.threads, "most": given.max_tokens}
    return {**about, "requests": given.requests, "seed": given.seed, "peers": [asdict(each) for each in peers]}
