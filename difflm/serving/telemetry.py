"""OpenTelemetry, for those who ask for it: a span for each request, in the trace of who sent it, without its texts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from difflm import __version__
from difflm.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

UNTRACED = ("/health", "/ready", "/metrics")
"""Paths that are asked for again and again, by machines, and are no requests of anybody."""
OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
ATTRIBUTES = {
    "request_id": "difflm.request.id",
    "id": "gen_ai.response.id",
    "stream": "gen_ai.request.stream",
    "answers": "gen_ai.request.choice.count",
    "finish_reasons": "gen_ai.response.finish_reasons",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "finished": "difflm.answers.finished",
    "queue_seconds": "difflm.queue_seconds",
    "first_token_seconds": "difflm.first_token_seconds",
    "forwards": "difflm.forwards",
    "drafted_tokens": "difflm.drafted_tokens",
    "accepted_tokens": "difflm.accepted_tokens",
}
"""Facts of the log -> attributes, by the conventions for generative models where these have a name."""
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
OTHER = "_OTHER"


def named(method: str) -> str:
    """Return a method of HTTP as a span names it: a client may have made it up, so only those that there are."""
    return method if method in METHODS else OTHER


def _first_word(method: str) -> str:
    """Return what the name of a span begins with."""
    return method if named(method) == method else "HTTP"


class Telemetry:
    """Makes the spans of a server.

    Args:
        provider: of the tracer; what becomes of spans is its business.
        model: under which name the model is served.
    """

    def __init__(self, provider: TracerProvider, *, model: str) -> None:
        self._provider, self._model = provider, model
        self._tracer = provider.get_tracer("difflm", __version__)

    def begin(self, method: str, path: str, headers: Sequence[tuple[bytes, bytes]]) -> Span | None:
        """Return the span of a request, in the trace that its headers name, if any; None for a path without spans.

        Args:
            method: of HTTP.
            path: of the request; it does not stand in the span, as it may hold anything.
            headers: of the request.

        Source: W3C Trace Context (`traceparent`, `tracestate`), or what OTEL_PROPAGATORS says.
        """
        from opentelemetry import propagate
        from opentelemetry.trace import SpanKind

        if path in UNTRACED:
            return None
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        attributes: dict[str, Any] = {"http.request.method": named(method), "url.scheme": "http"}
        if path in OPERATIONS:
            attributes["gen_ai.operation.name"] = OPERATIONS[path]
            attributes |= {"gen_ai.provider.name": "difflm", "gen_ai.request.model": self._model}
        return self._tracer.start_span(
            _first_word(method),
            context=propagate.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=attributes,
        )

    def end(self, span: Span, *, method: str, route: str | None, status: int, facts: Mapping[str, Any]) -> None:
        """End the span of a request.

        Args:
            span: of it.
            method: of HTTP.
            route: that served it, as it is declared; None where none did.
            status: of the response; 0 where there was none.
            facts: of the log.

        Source: OpenTelemetry's semantic conventions for HTTP servers and generative models, 1.40.
        """
        from opentelemetry.trace import StatusCode

        if route is not None:
            span.update_name(f"{_first_word(method)} {route}")
            span.set_attribute("http.route", route)
        if status:
            span.set_attribute("http.response.status_code", status)
        for name, attribute in ATTRIBUTES.items():
            if facts.get(name) is not None:
                span.set_attribute(attribute, facts[name])
        if facts.get("stream") and "first_token_seconds" in facts:
            span.set_attribute("gen_ai.response.time_to_first_chunk", facts["first_token_seconds"])
        if status >= 500 or facts.get("error"):
            span.set_attribute("error.type", facts.get("error") or str(status))
            span.set_status(StatusCode.ERROR)
        span.end()

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()


def provider_from_environment() -> TracerProvider:
    """Return a provider that sends spans by OTLP over HTTP; the OTEL_* variables say where, which, and as what.

    Raises:
        ConfigError: the extra [telemetry] is not installed, or a variable asks for what it cannot do.

    Source: OpenTelemetry's specification of environment variables; OTEL_TRACES_EXPORTER "otlp" or "none",
        OTEL_EXPORTER_OTLP_PROTOCOL "http/protobuf".
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"--telemetry: {error.name} is not installed; pip install 'difflm[serve,telemetry]'"
        ) from None
    exporter = _variable("OTEL_TRACES_EXPORTER", ("otlp", "none"))
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        _variable(name, ("http/protobuf",))
    named_already = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    own = {SERVICE_VERSION: __version__} | ({} if named_already else {SERVICE_NAME: "difflm"})
    provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
    if exporter == "otlp":
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _variable(name: str, known: Sequence[str]) -> str:
    """Return what a variable says, the first of what is known where it says nothing.

    Raises:
        ConfigError: it says something else.
    """
    value = os.environ.get(name, "").strip() or known[0]
    if value not in known:
        raise ConfigError(f"{name}: {value!r:.80} is not served; use {' or '.join(map(repr, known))}, or unset it")
    return value
