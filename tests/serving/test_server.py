"""The process: sockets as they are, clients that leave, signals, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from difflm.checkpoints.loading import LoadedModel
from difflm.errors import ConfigError
from difflm.serving.bridge import QueueLimits
from difflm.serving.limits import Limits
from difflm.serving.server import FAILED, Binding, Served
from difflm.serving.service import Service
from tests.serving.servers import Running, request_bytes, serving, until

ROOT = Path(__file__).parents[2]
LONG = {"prompt": "in the", "max_tokens": 400, "ignore_eos": True, "diffusion": {"threshold": 1}}


def received(connection: socket.socket) -> bytes:
    data = b""
    while part := connection.recv(65536):
        data += part
    return data


def slowed(running: Running, seconds: float) -> None:
    """Let every forward of the running engine take at least so long."""
    engine = running.service.bridge._engine
    run = engine.runner.run

    def slow(works: Any) -> Any:
        time.sleep(seconds)
        return run(works)

    engine.runner.run = slow  # type: ignore[method-assign]


def test_a_body_in_single_bytes(server: Running) -> None:
    data = request_bytes("/v1/completions", {"prompt": "in the", "max_tokens": 3}, headers="Connection: close\r\n")
    with server.connect() as connection:
        for number in range(len(data)):
            connection.sendall(data[number : number + 1])
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 3


def chunked(parts: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"


def test_a_body_in_chunks_without_a_length(server: Running) -> None:
    with server.connect() as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for part in (b'{"prompt": "i', b'n", "max_t', b'okens": 2}', b""):
            connection.sendall(chunked([part]))
        assert received(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("length", [b"Content-Length: 99999999\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_a_body_that_is_too_large_is_refused_before_it_is_whole(length: bytes, loaded: LoadedModel) -> None:
    with serving(loaded, limits=Limits(body_bytes=10_000)) as running, running.connect() as connection:
        connection.sendall(HEAD + length + b"\r\n")
        if b"chunked" in length:
            connection.sendall(chunked([b" " * 9000, b" " * 9000]))
        answer = received(connection)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b'"code":"body_too_large"' in answer
        assert running.post("/v1/completions", {"prompt": "in", "max_tokens": 2}).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(loaded: LoadedModel) -> None:
    with serving(loaded, limits=Limits(body_seconds=0.3)) as running, running.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        assert received(connection).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "data", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", b"\x00" * 100 + b"\r\n\r\n"]
)
def test_what_is_no_http(data: bytes, server: Running) -> None:
    with server.connect() as connection:
        connection.sendall(data)
        assert b" 400 " in received(connection)[:20]
    assert server.get("/health").status_code == 200


def test_a_large_body_does_not_hold_up_others(loaded: LoadedModel) -> None:
    with serving(loaded) as running:
        body = {"prompt": "in the beginning " * 50_000}
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(running.post("/v1/completions", body)))
        thread.start()
        slowest = 0.0
        while thread.is_alive():
            began = time.monotonic()
            assert running.get("/health").status_code == 200
            slowest = max(slowest, time.monotonic() - began)
        assert found[0].json()["error"]["code"] == "context_length_exceeded"
        assert slowest < 3.0  # of a shared machine; the text takes longer


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_engine(stream: bool, loaded: LoadedModel) -> None:
    with serving(loaded, max_requests=1) as running:
        slowed(running, 0.02)
        bridge = running.service.bridge
        first, second = running.connect(), running.connect()
        first.sendall(request_bytes("/v1/completions", {**LONG, "stream": stream}))
        until(lambda: bridge.running == 1)
        second.sendall(request_bytes("/v1/completions", {**LONG, "stream": stream}))
        until(lambda: bridge.waiting == 1)
        second.close()  # while it waits
        until(lambda: bridge.waiting == 0, 5)
        assert bridge.running == 1
        before = bridge.counts.forwards
        first.close()  # in the middle of a block
        until(lambda: bridge.running == 0, 5)
        assert bridge.counts.forwards - before < 50  # of 400
        assert bridge.active == 0
        assert bridge._engine.cache_use.running == 0
        assert running.post("/v1/completions", {"prompt": "in", "max_tokens": 2}).status_code == 200


def test_a_full_queue_says_when_to_come_back(loaded: LoadedModel) -> None:
    with serving(loaded, max_requests=1, queue=QueueLimits(requests=1, tokens=10_000)) as running:
        slowed(running, 0.02)
        bridge, connections = running.service.bridge, [running.connect() for _ in range(2)]
        for number, connection in enumerate(connections):
            connection.sendall(request_bytes("/v1/completions", LONG))
            until(lambda number=number: bridge.running + bridge.waiting == number + 1)
        for body in (LONG, {**LONG, "stream": True}):
            response = running.post("/v1/completions", body)
            assert response.status_code == 429
            assert 1 <= int(response.headers["retry-after"]) <= 120
            assert response.json()["error"]["code"] == "queue_full"
        assert "difflm_requests_refused_total 2.0" in running.get("/metrics").text
        for connection in connections:
            connection.close()
        until(lambda: bridge.active == 0)
        assert running.post("/v1/completions", {"prompt": "in", "max_tokens": 2}).status_code == 200


def test_a_reader_that_does_not_read_is_cut(loaded: LoadedModel) -> None:
    with serving(loaded, limits=Limits(write_seconds=0.5)) as running:
        connection = running.connect()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        options = {"stream": True, "stream_options": {"denoising": True}, "n": 16, "logprobs": 20}
        connection.sendall(request_bytes("/v1/completions", {**LONG, **options}))
        until(lambda: running.service.bridge.active == 16)
        until(lambda: running.service.bridge.active == 0, 60)
        until(lambda: not running.served.transports, 5)
        connection.close()
        assert running.get("/health").status_code == 200


def test_draining_finishes_what_runs_and_refuses_what_is_new(loaded: LoadedModel) -> None:
    with serving(loaded) as running:
        slowed(running, 0.01)
        found: list[Any] = []
        thread = threading.Thread(
            target=lambda: found.append(running.post("/v1/completions", {**LONG, "max_tokens": 60}))
        )
        thread.start()
        until(lambda: running.service.bridge.running == 1)
        running.served.signalled(signal.SIGTERM)
        response = running.post("/v1/completions", {"prompt": "x"})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "draining")
        assert response.headers["retry-after"] == "1"
        assert running.get("/ready").status_code == 503
        assert running.get("/health").status_code == 200
        thread.join(30)
        assert found[0].status_code == 200
        assert found[0].json()["usage"]["completion_tokens"] == 60
        running.thread.join(10)
        assert running.code == 0


@pytest.mark.parametrize("stream", [False, True])
def test_the_grace_time_has_an_end(stream: bool, loaded: LoadedModel) -> None:
    with serving(loaded, binding=Binding(port=0, grace_seconds=0.2)) as running:
        slowed(running, 0.05)
        found: list[Any] = []
        thread = threading.Thread(
            target=lambda: found.append(running.post("/v1/completions", {**LONG, "stream": stream}))
        )
        thread.start()
        until(lambda: running.service.bridge.running == 1)
        running.served.signalled(signal.SIGTERM)
        thread.join(30)
        assert found[0].status_code == (200 if stream else 503)
        assert '"code":"draining"' in found[0].text
        running.thread.join(20)
        assert running.code == 0


def test_a_dead_engine_is_said_and_ends_the_process(loaded: LoadedModel) -> None:
    with serving(loaded, binding=Binding(port=0, linger_seconds=1)) as running:
        bridge = running.service.bridge

        def fails(works: Any) -> Any:
            raise RuntimeError("CUDA error")

        def breaks() -> Any:
            engine = make()
            engine.runner.run = fails  # type: ignore[method-assign]
            return engine

        make, bridge._make_engine = bridge._make_engine, breaks
        bridge._engine.runner.run = fails  # type: ignore[method-assign]
        for _ in range(3):
            response = running.post("/v1/completions", {"prompt": "x"})
            assert response.status_code == 500
            assert "CUDA" not in response.text
        until(lambda: bridge.state == "dead")
        assert running.get("/health").status_code == 503
        assert running.post("/v1/completions", {"prompt": "x"}).json()["error"]["code"] == "engine_dead"
        running.thread.join(20)
        assert running.code == FAILED


def test_a_port_that_is_taken(server: Running, loaded: LoadedModel) -> None:
    served = Served(Service(loaded, name="tiny"), Binding(port=server.port))
    with pytest.raises(ConfigError, match=f"--port: 127.0.0.1:{server.port} cannot be bound"):
        served.run()


def test_the_command_serves_until_sigterm(loaded: LoadedModel) -> None:
    words = [sys.executable, "-m", "difflm", "serve", str(loaded.path), "--port", "0", "--threads", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DIFFLM_API_KEYS": "sesame"}
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        lines = []
        while not (lines and lines[-1].startswith("curl ")):
            lines.append(process.stderr.readline())
            assert process.poll() is None, lines
        assert process.stderr.readline().startswith("or open http://127.0.0.1:")
        assert lines[2].startswith("access: 1 API keys, hosts localhost, 127.0.0.1")
        assert lines[0].startswith(f"model tiny: {loaded.path}, context 512 tokens, with a chat template")
        assert "decoding block, temperature 0, block size 8, threshold 0.95" in lines[1]
        command = re.sub(r"^curl ", "curl --silent --show-error --fail-with-body ", lines[-1])
        assert "Bearer KEY" in command
        command = command.replace("KEY", "sesame")
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["choices"][0]["message"]["role"] == "assistant"
        process.send_signal(signal.SIGTERM)
        logged = [json.loads(line) for line in process.stderr.read().splitlines()]
        assert process.wait(30) == 0
        [request] = [line for line in logged if line["message"] == "request"]
        assert (request["path"], request["status"], request["finished"]) == ("/v1/chat/completions", 200, 1)
        assert "sesame" not in json.dumps(logged)
    finally:
        process.kill()
        process.wait()
