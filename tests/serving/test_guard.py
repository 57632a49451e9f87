"""Who may ask: hosts, keys, pages of other sites; and what stands in the log of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from difflm.checkpoints.loading import LoadedModel
from difflm.serving.guard import Guard, request_id
from difflm.serving.limits import Access, Limits
from tests.serving.servers import Running, request_bytes, serving, until

KEYS = ("sesame", "\u00e9t\u00e9")


@pytest.fixture(scope="module")
def locked(loaded: LoadedModel) -> Iterator[Running]:
    access = Access(keys=KEYS, hosts=("localhost", "127.0.0.1", "[::1]"), origins=("https://page.example",))
    with serving(loaded, access=access) as running:
        yield running


def raw(server: Running, data: bytes) -> bytes:
    with server.connect() as connection:
        connection.sendall(data)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


PATHS = ["/v1/models", "/v1/models/tiny", "/version", "/metrics", "/tokenizer_info", "/openapi.json", "/nope"]


@pytest.mark.parametrize("path", PATHS)
def test_without_a_key_nothing_is_said(path: str, locked: Running) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-Api-Key": "wrong"}, {"Authorization": "Basic sesame"}):
        response = locked.get(path, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    assert locked.get(path, headers={"X-Api-Key": "sesame"}).status_code in (200, 404)


def test_the_keys(locked: Running) -> None:
    for key in KEYS:
        for headers in ({"Authorization": f"Bearer {key}".encode()}, {"X-Api-Key": key.encode()}):
            assert locked.get("/v1/models", headers=headers).status_code == 200
    for path in ("/health", "/ready"):
        assert locked.get(path).status_code == 200


@pytest.mark.parametrize("key", [b"\xe9", b"\xff\xfe", "\u00fc".encode(), b"sesam", b"sesame2", b"x" * 5000, b""])
def test_keys_of_any_bytes_are_refused_and_no_crash(key: bytes, locked: Running) -> None:
    data = (
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer " + key + b"\r\n\r\n"
    )
    assert raw(locked, data).startswith(b"HTTP/1.1 401")


def test_an_empty_key_is_no_matter_where_none_is_asked_for(server: Running) -> None:
    headers = "Authorization: Bearer \r\nConnection: close\r\n"
    data = request_bytes("/v1/completions", {"prompt": "in", "max_tokens": 2}, headers=headers)
    assert raw(server, data).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"localhost", 200),
        (b"LOCALHOST:8000", 200),
        (b"127.0.0.1:1", 200),
        (b"[::1]:8000", 200),
        (b"evil.example", 403),
        (b"localhost.evil.example:80", 403),
        (b"127.0.0.1.evil.example", 403),
        (b"[::2]", 403),
        (b"", 403),
    ],
)
def test_hosts(host: bytes, status: int, locked: Running) -> None:
    data = b"GET /health HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n"
    assert raw(locked, data).startswith(b"HTTP/1.1 %d" % status)


def test_pages_of_other_sites(locked: Running, server: Running) -> None:
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    allowed = httpx2.options(f"{locked.address}/v1/completions", headers=asked)
    assert allowed.headers["access-control-allow-origin"] == "https://page.example"
    assert "access-control-allow-credentials" not in allowed.headers
    other = httpx2.options(f"{locked.address}/v1/completions", headers={**asked, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    closed = httpx2.options(f"{server.address}/v1/completions", headers=asked)
    assert closed.status_code == 405
    answer = server.post(
        "/v1/completions", {"prompt": "in", "max_tokens": 2}, headers={"Origin": "https://page.example"}
    )
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("given", ["abc-1.2_3", "x" * 65, "a b", "a\tb", '{"level":"error"}', ""])
def test_numbers_of_requests(given: str, server: Running) -> None:
    found = server.get("/health", headers={"X-Request-Id": given}).headers["x-request-id"]
    assert (found == given) == (given == "abc-1.2_3")
    assert len(found) == 32 or found == given


def test_numbers_are_new_where_none_is_given() -> None:
    scope: dict[str, Any] = {"headers": []}
    assert request_id(scope) != request_id(scope)


def test_a_line_for_each_request(locked: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "difflm.serving.access"):
        body = {"prompt": "in the beginning", "max_tokens": 3, "seed": 1, "n": 2}
        headers = {"X-Api-Key": "sesame", "X-Request-Id": "mine"}
        assert locked.post("/v1/completions", body, headers=headers).status_code == 200
        assert locked.post("/v1/completions", {**body, "stream": True}, headers=headers).status_code == 200
        assert locked.get("/v1/models").status_code == 401

        def facts_of() -> list[Any]:
            return [vars(record)["facts"] for record in caplog.records if record.getMessage() == "request"]

        until(lambda: len(facts_of()) == 3)  # a line is written behind the response
        facts = sorted(facts_of(), key=lambda each: each["status"])
    assert [each["status"] for each in facts] == [200, 200, 401]
    for each in facts[:2]:
        assert (each["request_id"], each["path"], each["answers"], each["finished"]) == (
            "mine",
            "/v1/completions",
            2,
            2,
        )
        assert each["completion_tokens"] == 6
    assert "sesame" not in str(facts)
    assert "beginning" not in str(facts)


def test_what_is_no_request_passes(loaded: LoadedModel) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def nothing(*_: Any) -> Any:
        return {}

    asyncio.run(Guard(app, Access(keys=("a",)), Limits())({"type": "lifespan"}, nothing, nothing))
    assert seen == ["lifespan"]
