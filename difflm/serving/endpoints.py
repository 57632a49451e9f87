"""What each endpoint does: a request in, a response out. The framework comes in as arguments."""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from difflm import __version__
from difflm.serving.answering import chunks, error_of, whole
from difflm.serving.errors import ApiError
from difflm.serving.service import Service
from difflm.serving.sse import HEADERS, ReaderGone, ReaderTooSlow, Receive, Send, send_events, unless_gone, written
from difflm.serving.tokenizing import detokenized, tokenized, tokenizer_info

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

_log = logging.getLogger("difflm.serving")
Abort = Callable[[], None]
"""Cuts the connection of a request."""
Aborting = Callable[[Any], Abort]
"""The scope of a request -> what cuts its connection."""
Handle = Callable[["Request"], Awaitable["Response"]]


def json_response(value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a response with a JSON value."""
    from starlette.responses import Response

    return Response(written(value), status_code=status, headers=headers, media_type="application/json")


def error_response(error: ApiError) -> Response:
    """Return the response of an error."""
    return json_response(error.body, status=error.status, headers=dict(error.headers))


async def completions(service: Service, request: Request, kind: str, abort: Abort) -> Response:
    """Answer a conversation or a prompt, whole or as a stream.

    Args:
        service: the model.
        request: of the client.
        kind: "chat" or "text".
        abort: for a client that does not read.
    """
    body = await json_body(request)
    plan = await service.plan(kind, body)
    tickets = service.submit(plan, client_of(request))

    def over() -> None:
        facts = service.metrics.observe(plan, tickets)
        request.scope.get("state", {}).get("facts", {}).update(facts)

    if plan.stream:
        return stream_response(chunks(plan, tickets, service.bridge, service.limits), service, abort, over)
    try:
        work = whole(plan, tickets, service.bridge, service.limits)
        return json_response(await unless_gone(request.receive, work))
    finally:
        over()


def client_of(request: Request) -> str:
    """Return whose turn a request takes: its key's, else its address's."""
    return request.scope.get("state", {}).get("client") or (request.client.host if request.client else "")


async def json_body(request: Request) -> bytes:
    """Return the body of a request.

    Raises:
        ApiError: it does not say that it is JSON: pages of other sites may send anything else without being asked.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        message = f"content-type: {kind!r:.60} is not served; send application/json"
        raise ApiError(status=415, message=message, param="content-type")
    return await request.body()


def stream_response(
    chunks: AsyncGenerator[dict[str, Any], None], service: Service, abort: Abort, over: Callable[[], None]
) -> Response:
    """Return a response that sends chunks as events.

    Args:
        chunks: of the answer.
        service: the model.
        abort: for a client that does not read.
        over: called at the end, however it comes.
    """
    from starlette.responses import Response

    class EventStream(Response):
        async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
            head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            seconds = service.limits.write_seconds
            try:
                async with aclosing(chunks):
                    await send(head)
                    await send_events(receive, send, chunks, write_seconds=seconds)
            except ReaderGone:
                return
            except ReaderTooSlow:
                _log.warning("a reader was cut: it took nothing for %g seconds", seconds)
                abort()
            finally:
                over()

    response = EventStream()
    del response.headers["content-length"]
    response.headers.update(HEADERS)
    return response


def health(service: Service) -> Response:
    """Say whether the engine is alive."""
    dead = service.bridge.state in ("dead", "stopped")
    return json_response({"status": "dead" if dead else "ok"}, status=503 if dead else 200)


def ready(service: Service) -> Response:
    """Say whether requests are taken."""
    state = service.bridge.state
    return json_response({"status": state}, status=200 if state == "running" else 503)


def version() -> Response:
    """Say which difflm this is."""
    return json_response({"version": __version__})


async def tokenize(service: Service, request: Request) -> Response:
    """Return the ids of a text or a conversation."""
    body = await json_body(request)
    return json_response(await service.off_the_loop(lambda: tokenized(service.planner, body)))


async def detokenize(service: Service, request: Request) -> Response:
    """Return the text of ids."""
    body = await json_body(request)
    return json_response(await service.off_the_loop(lambda: detokenized(service.planner, body)))


def metrics(service: Service) -> Response:
    """Return the metrics."""
    from starlette.responses import Response

    return Response(service.metrics.text(), media_type=service.metrics.content_type)


def table(service: Service, aborting: Aborting) -> list[tuple[str, str, Handle]]:
    """Return method, path and handler of every endpoint.

    Args:
        service: the model.
        aborting: how the connection of a request is cut.
    """
    created = int(time.time())

    async def chat(request: Request) -> Response:
        return await completions(service, request, "chat", aborting(request.scope))

    async def text(request: Request) -> Response:
        return await completions(service, request, "text", aborting(request.scope))

    async def models(request: Request) -> Response:
        return json_response({"object": "list", "data": [service.model_object(created)]})

    async def model(request: Request) -> Response:
        service.planner.check_model(request.path_params["name"])
        return json_response(service.model_object(created))

    def simple(make: Callable[[], Response]) -> Handle:
        async def answer(request: Request) -> Response:
            return make()

        return answer

    return [
        ("POST", "/v1/chat/completions", chat),
        ("POST", "/v1/completions", text),
        ("GET", "/v1/models", models),
        ("GET", "/v1/models/{name:path}", model),
        ("POST", "/tokenize", functools.partial(tokenize, service)),
        ("POST", "/detokenize", functools.partial(detokenize, service)),
        ("GET", "/tokenizer_info", simple(lambda: json_response(tokenizer_info(service.loaded)))),
        ("GET", "/health", simple(lambda: health(service))),
        ("GET", "/ready", simple(lambda: ready(service))),
        ("GET", "/version", simple(version)),
        ("GET", "/metrics", simple(lambda: metrics(service))),
    ]


def answer_to(error: Exception) -> Response:
    """Return the response of whatever went wrong."""
    return error_response(error_of(error))


def not_found(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """Return the response of a path or method that there is not; its headers may name the methods that there are."""
    return error_response(ApiError(status=status, message=json.dumps(detail)[1:-1], headers=headers or {}))
