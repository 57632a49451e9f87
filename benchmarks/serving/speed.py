"""Throughput, latency and time to the first text against the number of clients: engine, server, and a peer's server.

The same conversations go to every system, by the same client, in turn: in each round every system serves every number
of clients once, in an order that changes. Each client sends its next conversation as soon as it has the answer. Tokens
are counted by one tokenizer, that of our model, over the text that came back: servers count in different ways. A
stream's first text is that of its first block; left to right, and from a peer, that of its first token.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.lossless.records import Results, Row
from benchmarks.serving import tables
from benchmarks.serving.wire import exchange, post
from difflm.checkpoints.loading import LoadedModel
from difflm.decode.engine import Engine
from difflm.decode.events import Committed, Finished
from difflm.decode.request import SamplingParams
from difflm.errors import DifflmError
from difflm.types import Decoding

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
        name: for the tables.
        decoding: of the answers; None: the model's own.
    """

    loaded: LoadedModel
    name: str = tables.ENGINE
    decoding: Decoding | None = None

    def answer(self, questions: Sequence[str], clients: int, most: int) -> list[Answered]:
        """See `System`."""
        engine = Engine(self.loaded, max_requests=max(clients, 1), prefix_caching=False)
        params, found = SamplingParams(max_new_tokens=most, decoding=self.decoding), dict[int, Answered]()
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
        more: fields of every request beside those that all servers are sent.
    """

    name: str
    port: int
    model: str
    more: Mapping[str, Any] = field(default_factory=dict[str, Any])

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
        body |= self.more
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
    remote = Remote(name, port, model)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    said: list[str] = []
    listening = threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True)
    listening.start()
    end = time.monotonic() + seconds
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


def own_command(model: Path, port: int, threads: int, more: Sequence[str] = ()) -> list[str]:
    """Return the words that start our server."""
    words = [sys.executable, "-m", "difflm", "serve", str(model), "--port", str(port), "--threads", str(threads)]
    return [*words, "--name", "model", "--no-prefix-caching", "--log-level", "error", *more]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another server.

    Attributes:
        name: for the tables.
        command: that starts it, with `{port}` where the port goes, or the address of one that runs already.
        model: that it is asked for.
    """

    name: str
    command: str
    model: str

    @classmethod
    def of(cls, text: str) -> Peer:
        """Return the peer of `NAME,MODEL,COMMAND` or `NAME,MODEL,http://127.0.0.1:PORT`.

        Raises:
            DifflmError: another form, a command without `{port}`, or an address elsewhere.
        """
        parts = [part.strip() for part in text.split(",", 2)]
        peer = cls(name=parts[0], model=parts[1], command=parts[2]) if len(parts) == 3 and all(parts) else None
        if peer is None or not ("{port}" in peer.command or peer.port):
            raise DifflmError(
                f"--peer: {text!r:.80} is not NAME,MODEL,COMMAND with {{port}} in the command, "
                "nor NAME,MODEL,http://127.0.0.1:PORT"
            )
        return peer

    @property
    def port(self) -> int | None:
        """Where it runs already; None for one that is to be started."""
        found = re.fullmatch(r"http://(?:127\.0\.0\.1|localhost):(\d+)/?", self.command)
        return int(found[1]) if found else None


@contextmanager
def all_of(
    loaded: LoadedModel, given: argparse.Namespace, decodings: Sequence[Decoding | None], peers: Sequence[Peer]
) -> Iterator[list[System]]:
    """Run our server and the peers' while the context lasts; yields the systems: engine and server, then the peers.

    Args:
        loaded: the model.
        given: options of the command.
        decodings: each of which the engine and the server are measured with; None: the model's own.
        peers: other servers.
    """
    with ExitStack() as stack:
        port = free_port()
        words = own_command(given.model, port, given.threads, ["--dtype", given.dtype])
        stack.enter_context(started(words, name=tables.SERVER, model="model", port=port))
        systems: list[System] = []
        for decoding in decodings:
            ending = "" if decoding is None else f", {decoding}"
            more = {} if decoding is None else {"diffusion": {"decoding": decoding}}
            systems.append(Ours(loaded, f"{tables.ENGINE}{ending}", decoding))
            systems.append(Remote(f"{tables.SERVER}{ending}", port, "model", more))
        for peer in peers:
            if peer.port:
                systems.append(Remote(peer.name, peer.port, peer.model))
                continue
            port = free_port()
            words = shlex.split(peer.command.replace("{port}", str(port)))
            systems.append(stack.enter_context(started(words, name=peer.name, model=peer.model, port=port)))
        yield systems


def subject(given: Any, peers: Sequence[Peer]) -> dict[str, Any]:
    """Return what a measurement depends on, beside its systems and numbers of clients."""
    about = {"command": "speed", "model": str(given.model), "dtype": given.dtype, "threads": given.threads}
    about |= {"most": given.max_tokens, "decoding": given.decoding}
    return {**about, "requests": given.requests, "seed": given.seed, "peers": [asdict(each) for each in peers]}
