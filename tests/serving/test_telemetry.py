"""A request is a span in the trace of who sent it, and nothing that was said stands in it."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.errors import ConfigError
from difflm.serving.limits import Access, Limits
from difflm.serving.setup import Options, served
from difflm.serving.telemetry import Telemetry, provider_from_environment
from tests.drafters import drafters
from tests.serving.servers import Running, serving, until

__all__ = ["drafters"]

CHAT = "/v1/chat/completions"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRETS = ("lighthouse", "sesame", "nobody-s-path")
BODY = {"messages": [{"role": "user", "content": "lighthouse"}], "max_tokens": 6, "seed": 3}


class Traced:
    """A server and the spans that it makes.

    Args:
        loaded: the model.
        options: of the server.
    """

    def __init__(self, loaded: LoadedModel, **options: Any) -> None:
        self.exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.serving = serving(loaded, telemetry=Telemetry(provider, model="tiny"), **options)

    def spans(self, count: int) -> list[ReadableSpan]:
        """Return all spans so far, once there are so many: one ends behind the last byte of its response."""
        until(lambda: len(self.exporter.get_finished_spans()) >= count)
        found = sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
        assert len(found) == count
        assert not [word for span in found for word in SECRETS if word in span.to_json()]
        return found


def facts(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_an_answer_is_a_span_in_the_trace_of_its_client(loaded: LoadedModel) -> None:
    traced = Traced(loaded)
    with traced.serving as server:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
        whole = server.post(CHAT, BODY, headers=headers).json()
        server.post("/v1/completions", {"prompt": "lighthouse", "max_tokens": 4, "n": 2, "stream": True})
        chat, text = traced.spans(2)
    assert chat.parent is not None
    assert chat.context is not None
    assert (f"{chat.context.trace_id:032x}", f"{chat.parent.span_id:016x}") == (TRACE, PARENT)
    assert text.parent is None
    assert (chat.name, chat.kind, chat.status.status_code) == (f"POST {CHAT}", SpanKind.SERVER, StatusCode.UNSET)
    found = facts(chat)
    queue, first = found.pop("difflm.queue_seconds"), found.pop("difflm.first_token_seconds")
    assert 0 <= queue <= first < ((chat.end_time or 0) - (chat.start_time or 0)) / 1e9
    usage = whole["usage"]
    assert found == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "url.scheme": "http",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "difflm",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.choice.count": 1,
        "gen_ai.request.stream": False,
        "gen_ai.response.id": whole["id"],
        "gen_ai.response.finish_reasons": (whole["choices"][0]["finish_reason"],),
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "difflm.answers.finished": 1,
        "difflm.forwards": sum(usage["diffusion"]["forwards"][kind] for kind in ("denoise", "commit")),
        "difflm.request.id": "mine",
    }
    found = facts(text)
    assert (found["gen_ai.operation.name"], found["gen_ai.request.choice.count"]) == ("text_completion", 2)
    assert found["gen_ai.response.time_to_first_chunk"] == found["difflm.first_token_seconds"] > 0


def test_drafts_stand_in_the_span(drafters: Path) -> None:
    traced = Traced(load_model(drafters / "drafter"))
    with traced.serving as server:
        own = server.post("/v1/completions", {"prompt": "in", "max_tokens": 20}).json()["usage"]["diffusion"]
        [span] = traced.spans(1)
    assert facts(span)["difflm.drafted_tokens"] == own["drafted_tokens"] > 0
    assert facts(span)["difflm.accepted_tokens"] == own["accepted_tokens"]


def test_a_refused_request_is_a_span_without_what_it_sent(loaded: LoadedModel) -> None:
    traced = Traced(loaded, access=Access(keys=("sesame",)), limits=Limits(body_bytes=2000))
    with traced.serving as server:
        key = {"authorization": "Bearer sesame"}
        server.post(CHAT, BODY, headers={"authorization": "Bearer lighthouse"})
        server.post(CHAT, {**BODY, "user": "x" * 3000}, headers=key)
        server.get("/nobody-s-path", headers=key)
        server.post(CHAT, {**BODY, "temperature": -1}, headers=key)
        spans = traced.spans(4)
    assert [(span.name, facts(span)["http.response.status_code"]) for span in spans] == [
        ("POST", 401),
        ("POST", 413),
        ("GET", 404),
        (f"POST {CHAT}", 400),
    ]
    assert {span.status.status_code for span in spans} == {StatusCode.UNSET}


def test_a_failure_is_an_error_without_its_text(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*given: Any) -> None:
        raise ValueError("lighthouse")

    def lines() -> list[dict[str, Any]]:
        return [vars(record)["facts"] for record in caplog.records if record.name == "difflm.serving.access"]

    traced = Traced(loaded)
    with traced.serving as server, caplog.at_level(logging.INFO, "difflm.serving.access"):
        monkeypatch.setattr(server.service, "submit", broken)
        assert server.post(CHAT, BODY).status_code == 500
        [span] = traced.spans(1)
        until(lambda: bool(lines()))
    assert (span.status.status_code, span.status.description, list(span.events)) == (StatusCode.ERROR, None, [])
    assert facts(span)["error.type"] == "ValueError"
    assert facts(span)["http.response.status_code"] == 500
    [line] = lines()
    assert span.context is not None
    assert (line["status"], line["error"]) == (500, "ValueError")
    assert line["trace_id"] == f"{span.context.trace_id:032x}"


def test_probes_are_no_spans(loaded: LoadedModel) -> None:
    traced = Traced(loaded)
    with traced.serving as server:
        for path in ("/health", "/ready", "/metrics"):
            assert server.get(path).status_code == 200
        server.get("/version")
        [span] = traced.spans(1)
    assert span.name == "GET /version"


def test_a_method_that_a_client_made_up_is_not_repeated(loaded: LoadedModel) -> None:
    traced = Traced(loaded)
    with traced.serving as server, server.connect() as connection:
        connection.sendall(f"lighthouse {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        [span] = traced.spans(1)
    assert (span.name, facts(span)["http.request.method"]) == (f"HTTP {CHAT}", "_OTHER")


# Where spans go.


class Collector(HTTPServer):
    """What takes spans in."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, bytes]] = []
        taken = self.taken

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                taken.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    found = Collector()
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("said", "expected"), [(None, b"difflm"), ("house", b"house")])
def test_spans_go_where_the_variables_say(
    said: str | None, expected: bytes, collector: Collector, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    if said:
        monkeypatch.setenv("OTEL_SERVICE_NAME", said)
    told: list[str] = []
    found = served(loaded, Options(port=0, telemetry=True), fallback_name="tiny", say=told.append)
    assert told[3] == "telemetry: a span for each request, to where the OTEL_* variables say"
    running = Running(found)
    running.thread.start()
    assert running.started.wait(30)
    running.get("/version")
    running.stop()
    [(path, body)] = collector.taken
    assert path == "/v1/traces"
    assert b"GET /version" in body
    assert b"service.name\x12" in body
    assert expected in body


def test_none_is_sent_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    provider = provider_from_environment()
    assert provider._active_span_processor._span_processors == ()
    provider.shutdown()


@pytest.mark.parametrize("name", ["OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_PROTOCOL"])
def test_a_variable_that_cannot_be_followed_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "grpc")
    with pytest.raises(ConfigError, match=f"^{name}: 'grpc' is not served; use '"):
        Options(telemetry=True).check()


def test_without_the_extra_the_option_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"^--telemetry: .* pip install 'difflm\[serve,telemetry\]'"):
        Options(telemetry=True).check()
    Options().check()


def test_without_the_option_there_are_no_spans(loaded: LoadedModel) -> None:
    assert served(loaded, Options(port=0), fallback_name="tiny", say=print).telemetry is None
