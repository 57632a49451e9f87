"""The application: which path leads to which endpoint. Annotations here are real: the framework reads them."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from difflm import __version__
from difflm.errors import ConfigError
from difflm.serving import endpoints
from difflm.serving.errors import internal
from difflm.serving.openapi import described
from difflm.serving.service import Service
from difflm.serving.sse import ReaderGone

if TYPE_CHECKING:
    from fastapi import FastAPI

Aborting = Callable[[Any], Callable[[], None]]
"""A request's scope -> what cuts its connection."""


def make_app(service: Service, *, aborting: Aborting = lambda scope: lambda: None) -> "FastAPI":
    """Return the ASGI application of a service; its start and end are the service's.

    Args:
        service: what is served.
        aborting: how the connection of a request is cut.

    Raises:
        ConfigError: the extra [serve] is not installed.
    """
    try:
        from fastapi import FastAPI, Request, Response
        from starlette.exceptions import HTTPException
    except ImportError as error:
        raise ConfigError(f"serve: {error.name} is not installed; pip install 'difflm[serve]'") from None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    created = int(time.time())
    app = FastAPI(title="difflm", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)

    async def chat(request: Request) -> Response:
        return await endpoints.completions(service, request, "chat", aborting(request.scope))

    async def text(request: Request) -> Response:
        return await endpoints.completions(service, request, "text", aborting(request.scope))

    async def models() -> Response:
        return endpoints.models(service, created)

    async def model(name: str) -> Response:
        return endpoints.model(service, created, name)

    async def health() -> Response:
        return endpoints.health(service)

    async def ready() -> Response:
        return endpoints.ready(service)

    async def version() -> Response:
        return endpoints.version()

    routes: list[tuple[str, str, Any]] = [
        ("POST", "/v1/chat/completions", chat),
        ("POST", "/v1/completions", text),
        ("GET", "/v1/models", models),
        ("GET", "/v1/models/{name:path}", model),
        ("GET", "/health", health),
        ("GET", "/ready", ready),
        ("GET", "/version", version),
    ]
    for method, path, endpoint in routes:
        app.add_api_route(path, endpoint, methods=[method], response_model=None, **described(path))

    async def wrong(request: Request, error: Exception) -> Response:
        return endpoints.answer_to(error)

    async def absent(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException), "registered for these"
        return endpoints.not_found(error.status_code, str(error.detail))

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    async def defect(request: Request, error: Exception) -> Response:
        return endpoints.error_response(internal())

    from difflm.errors import DifflmError
    from difflm.serving.errors import ApiError
    from difflm.serving.failures import Unanswered

    for kind in (ApiError, Unanswered, DifflmError):
        app.add_exception_handler(kind, wrong)
    app.add_exception_handler(HTTPException, absent)
    app.add_exception_handler(ReaderGone, gone)
    app.add_exception_handler(Exception, defect)
    return app
