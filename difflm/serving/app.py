"""The application: which path leads to which endpoint. Annotations here are real: the framework reads them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from difflm import __version__
from difflm.errors import ConfigError, DifflmError
from difflm.serving import endpoints
from difflm.serving.errors import ApiError, internal
from difflm.serving.failures import Unanswered
from difflm.serving.guard import Guard
from difflm.serving.openapi import described
from difflm.serving.page import PLACES, page_response
from difflm.serving.service import Service
from difflm.serving.sse import ReaderGone
from difflm.serving.telemetry import Telemetry

if TYPE_CHECKING:
    from fastapi import FastAPI


def make_app(
    service: Service,
    *,
    aborting: endpoints.Aborting = lambda scope: lambda: None,
    telemetry: Telemetry | None = None,
) -> "FastAPI":
    """Return the ASGI application of a service; its start and end are the service's.

    Args:
        service: what is served.
        aborting: how the connection of a request is cut.
        telemetry: makes a span of each request; None: there are none.

    Raises:
        ConfigError: the extra [serve] is not installed.
    """
    try:
        from fastapi import FastAPI, Request, Response
        from starlette.middleware.cors import CORSMiddleware
    except ImportError as error:
        raise ConfigError(f"serve: {error.name} is not installed; pip install 'difflm[serve]'") from None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    def endpoint(handle: endpoints.Handle) -> Any:
        async def answer(request: Request) -> Response:
            return await handle(request)

        return answer

    async def page(request: Request) -> Response:
        return page_response(request)

    app = FastAPI(title="difflm", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    for method, path, handle in endpoints.table(service, aborting):
        answer = endpoint(handle)
        app.add_api_route(path, answer, methods=[method], response_model=None, name=path, **described(method, path))
        if method == "GET":  # many checks of a server's health ask for its head alone
            app.add_api_route(path, answer, methods=["HEAD"], response_model=None, include_in_schema=False)
    for path in PLACES:
        app.add_api_route(path, endpoint(page), methods=["GET", "HEAD"], response_model=None, include_in_schema=False)
    _add_handlers(app)
    app.add_middleware(Guard, access=service.access, limits=service.limits, telemetry=telemetry)  # type: ignore[arg-type]
    if service.access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-api-key", "x-request-id"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return app


def _add_handlers(app: "FastAPI") -> None:
    """Let every failure be answered in one form."""
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response

    async def wrong(request: Request, error: Exception) -> Response:
        return endpoints.answer_to(error)

    async def absent(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException), "registered for these"
        return endpoints.not_found(error.status_code, str(error.detail), dict(error.headers or {}))

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it; it stands in the log

    async def defect(request: Request, error: Exception) -> Response:
        return endpoints.error_response(internal())

    for kind in (ApiError, Unanswered, DifflmError):
        app.add_exception_handler(kind, wrong)
    app.add_exception_handler(HTTPException, absent)
    for kind in (ReaderGone, ClientDisconnect):  # behind its request, or in the middle of it
        app.add_exception_handler(kind, gone)
    app.add_exception_handler(Exception, defect)
