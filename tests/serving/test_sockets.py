"""Plain sockets: requests in odd pieces, several on one connection, and clients that leave in the middle of one."""

from __future__ import annotations

import json
import logging
import socket
from contextlib import suppress

import pytest

from tests.serving.servers import Running, request_bytes, until

SHORT = {"prompt": "in the", "max_tokens": 3}
CHUNKED = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
CHUNKED += b"Transfer-Encoding: chunked\r\n\r\n"


def received(connection: socket.socket) -> bytes:
    data = b""
    while part := connection.recv(65536):
        data += part
    return data


def response(connection: socket.socket) -> tuple[bytes, bytes]:
    """Return head and body of one response of a connection that stays open."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += connection.recv(65536)
    return head, body


def test_chunks_that_are_cut_anywhere(server: Running) -> None:
    body = json.dumps(SHORT).encode()
    chunks = [b"%x;note=1\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:])]
    data = CHUNKED + b"".join(chunks) + b"0\r\n\r\n"
    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(len(data)):
            connection.sendall(data[number : number + 1])
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("size", [b"-1", b"zz", b"FFFFFFFFFFFFFFFFFFFF"])
def test_sizes_of_chunks_that_are_none(size: bytes, server: Running) -> None:
    with server.connect() as connection:
        connection.sendall(CHUNKED + size + b"\r\n{}\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert received(connection)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 413", b"")
    assert server.get("/health").status_code == 200


def test_several_requests_on_one_connection(server: Running) -> None:
    with server.connect() as connection:
        for tokens in (2, 3):
            connection.sendall(request_bytes("/v1/completions", {**SHORT, "max_tokens": tokens}))
            head, body = response(connection)
            assert head.startswith(b"HTTP/1.1 200")
            assert json.loads(body)["usage"]["completion_tokens"] == tokens
        connection.sendall(request_bytes("/v1/completions", b"{"))
        assert response(connection)[0].startswith(b"HTTP/1.1 400")
        connection.sendall(request_bytes("/v1/completions", SHORT))
        assert response(connection)[0].startswith(b"HTTP/1.1 200")


def test_a_request_behind_another_before_its_answer(server: Running) -> None:
    with server.connect() as connection:
        one, two = (request_bytes("/v1/completions", {**SHORT, "max_tokens": tokens}) for tokens in (2, 3))
        two = two.replace(b"Host", b"Connection: close\r\nHost", 1)
        connection.sendall(one + two)
        answers = received(connection)
    assert answers.count(b"HTTP/1.1 200") == 2
    assert answers.index(b'"completion_tokens":2') < answers.index(b'"completion_tokens":3')


def test_a_body_that_waits_to_be_asked_for(server: Running) -> None:
    """What curl does with long bodies."""
    data = request_bytes("/v1/completions", SHORT, headers="Expect: 100-continue\r\nConnection: close\r\n")
    head, _, body = data.partition(b"\r\n\r\n")
    with server.connect() as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 100")
        connection.sendall(body)
        assert received(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_client_that_leaves_before_its_request_is_whole(share: float, server: Running) -> None:
    data = request_bytes("/v1/completions", SHORT)
    with server.connect() as connection:
        connection.sendall(data[: int(share * len(data))])
    until(lambda: not server.on_loop(lambda: server.served.transports))
    assert server.service.bridge.active == 0
    assert server.get("/health").status_code == 200


def test_a_client_that_leaves_in_the_middle_of_a_body_is_no_defect(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "difflm.serving.access"):
        with server.connect() as connection:
            connection.sendall(request_bytes("/v1/completions", SHORT)[:-1])
        until(lambda: any(vars(record).get("facts", {}).get("status") == 499 for record in caplog.records))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_more_of_a_head_than_anybody_needs(server: Running) -> None:
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 200_000 + b"\r\n\r\n"
    # The server does not read to the end, so the connection may be reset before the answer is here.
    with server.connect() as connection, suppress(ConnectionError):
        connection.sendall(head)
        assert received(connection)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431")
    assert server.get("/health").status_code == 200


@pytest.mark.parametrize(
    "lengths",
    [b"Content-Length: 2\r\nContent-Length: 3", b"Content-Length: +2", b"Content-Length: 2\r\nTransfer-Encoding: x"],
)
def test_lengths_that_a_proxy_could_read_in_another_way(lengths: bytes, server: Running) -> None:
    with server.connect() as connection:
        connection.sendall(CHUNKED.replace(b"Transfer-Encoding: chunked", lengths) + b"{}")
        connection.shutdown(socket.SHUT_WR)
        assert received(connection)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 501")
    assert server.get("/health").status_code == 200
