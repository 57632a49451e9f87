"""A server as backend: the same answers as the model itself, told alike; and every refusal says what to do next."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from difflm.chat.local import LocalBackend
from difflm.chat.remote import ServerBackend, address_of, refusal, request_body
from difflm.chat.session import Asked, Session
from difflm.chat.settings import Settings
from difflm.checkpoints.loading import LoadedModel
from difflm.decode.events import Completion, Denoised, Event, Finished
from difflm.decode.recorder import Cell
from difflm.display import Canvas
from difflm.errors import ConfigError, RequestError
from difflm.serving.limits import Access
from tests.chat.fakes import shown
from tests.serving.servers import NAME, Running, serving, until

SETTINGS: list[dict[str, Any]] = [
    {},
    {"block_size": 4, "threshold": 0.01, "min_accept": 2},
    {"temperature": 1.0, "seed": 3, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1},
    {"decoding": "next_token", "logit_bias": {40: 3.0}, "presence_penalty": 0.5, "frequency_penalty": 0.1},
    {"policy": "hf21:threshold=0.4"},
    {"editing_threshold": 0.001, "max_post_steps": 3, "temperature": 0.7, "seed": 1, "stop": ("e",)},
    {"stop_token_ids": (70, 71, 72), "min_tokens": 2, "seed": 5, "temperature": 2.0},
]


def facts(completion: Completion) -> Completion:
    """Return what has to be equal: not how long it took, nor what was read (this server keeps nothing)."""
    forwards = dataclasses.replace(completion.forwards, prefill=0)
    return dataclasses.replace(completion, seconds=0.0, forwards=forwards, reused_tokens=0)


def decided(talk: Session) -> list[Cell]:
    """Return the cells of the last answer, without the ids of the prompt, which no server tells."""
    assert talk.last is not None
    return [dataclasses.replace(cell, token=cell.token if cell.step else None) for cell in talk.last.cells()]


@pytest.mark.parametrize("given", SETTINGS, ids=lambda given: ",".join(given) or "none")
def test_answers_are_those_of_the_model_itself(given: dict[str, Any], server: Running, loaded: LoadedModel) -> None:
    settings = Settings({"max_new_tokens": 12, "ignore_eos": True, **given})
    here = Session(LocalBackend(loaded), shown, settings)
    there = Session(ServerBackend(server.address), shown, settings)
    for talk in (here, there):
        talk.system("the word")
    for text in ("in the beginning", " na\u00efve \U0001fae0 <|user|>\n"):
        expected, found = here.say(text), there.say(text)
        assert facts(found) == facts(expected)
        expected, found = decided(here), decided(there)
        assert [cell.confidence for cell in found] == pytest.approx([cell.confidence for cell in expected])
        assert [dataclasses.replace(cell, confidence=None) for cell in found] == [
            dataclasses.replace(cell, confidence=None) for cell in expected
        ]
    assert there.messages == here.messages
    there.settings = here.settings = Settings({**settings.given, "seed": 8})
    here.retry()
    there.retry()
    assert there.messages == here.messages


def test_what_is_drawn_ends_as_the_text(server: Running) -> None:
    backend = ServerBackend(server.address)
    assert (backend.model, backend.ours, backend.unset) == (NAME, True, "the server's")
    asked = backend.ask([{"role": "user", "content": "in"}], Settings({"max_new_tokens": 20, "ignore_eos": True}))
    canvas, drawn, events = Canvas(asked.decode, asked.decode_all, mask="_"), list[str](), list[Event]()
    for event in asked.events:
        canvas.apply(event)
        drawn.append(canvas.text())
        events.append(event)
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.completion.text is not None
    assert canvas.decode(canvas.committed) == last.completion.text
    assert any("_" in text for text in drawn)
    assert sum(isinstance(event, Denoised) for event in events) == last.completion.forwards.denoise
    backend.close()


def test_an_answer_that_is_given_up_is_out_of_the_server(server: Running) -> None:
    def some(asked: Asked) -> Completion:
        next(asked.events)
        asked.events.close()
        raise KeyboardInterrupt

    talk = Session(ServerBackend(server.address), some, Settings({"max_new_tokens": 400, "ignore_eos": True}))
    with pytest.raises(KeyboardInterrupt):
        talk.say("in")
    until(lambda: "difflm_num_requests_running 0.0" in server.get("/metrics").text)
    talk.show, talk.settings = shown, Settings({"max_new_tokens": 4})
    talk.say("in")
    assert len(talk.messages) == 2


def test_a_key_is_asked_for_and_taken(loaded: LoadedModel) -> None:
    with serving(loaded, access=Access(keys=("s\u00e9cret",))) as running:
        for wrong in (None, "secret"):
            with pytest.raises(
                RequestError, match=r"answered 401 .*; give the key .* with --api-key, or in DIFFLM_API_KEY$"
            ):
                ServerBackend(running.address, key=wrong)
        assert ServerBackend(running.address, key="s\u00e9cret").model == NAME


def test_a_conversation_that_is_too_long_says_what_helps(server: Running) -> None:
    talk = Session(ServerBackend(server.address), shown)
    with pytest.raises(
        RequestError, match=r"answered 400 \(messages: .*fit the context.*\); /undo, /clear or /set max_tok"
    ):
        talk.say("word " * 600)
    assert talk.messages == []
    talk.settings = Settings({"threshold": 0.5, "max_new_tokens": 10**6})
    with pytest.raises(RequestError, match=r"answered 400 \(max_tokens: 1000000 is more than this server allows"):
        talk.say("word")


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(
            RequestError, match=rf"^server: {address} cannot be reached \(.*\); start it with difflm serve"
        ):
            ServerBackend(address)


def answering(answer: Callable[[httpx2.Request], httpx2.Response], models: Any = None) -> ServerBackend:
    """Return a backend whose server lists one model (or what is given) and answers as it is told."""

    def handle(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/models":
            return httpx2.Response(200, json=models or {"data": [{"id": "m"}]})
        return answer(request)

    return ServerBackend("http://host", transport=httpx2.MockTransport(handle))


def error_of(backend: ServerBackend) -> str:
    with pytest.raises(RequestError) as caught:
        Session(backend, shown).say("in")
    return str(caught.value)


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (401, {}, "give the key that it asks for with --api-key, or in DIFFLM_API_KEY"),
        (403, {}, "--allowed-host NAME"),
        (404, {}, "is the address right, and the name of the model?"),
        (413, {}, "/clear or /undo makes the conversation shorter"),
        (429, {"Retry-After": "7"}, "it has too much to do; ask again in 7 seconds"),
        (429, {}, "it has too much to do; ask again later"),
        (503, {"Retry-After": "1"}, "ask again in 1 seconds, or start it anew with difflm serve"),
        (504, {}, "/set max_tokens"),
        (500, {}, "ask again; its log says more"),
        (502, {"Retry-After": "Fri, 01 Jan 2027 00:00:00 GMT"}, "ask again; its log says more"),
        (400, {}, "http://host answered 400 (the reason)"),
    ],
)
def test_refusals_say_what_to_do(status: int, headers: dict[str, str], expected: str) -> None:
    body = {"error": {"message": "the\nreason", "code": None}}
    found = error_of(answering(lambda request: httpx2.Response(status, headers=headers, json=body)))
    assert found.startswith(f"server: http://host answered {status} (the reason)")
    assert found.endswith(expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"detail": "no"}', "no"),
        ('{"error": "no"}', "no"),
        ("<html>", "<html>"),
        ("", "without a reason"),
        ("[1]", "[1]"),
        ("x" * 999, "x" * 300),
    ],
)
def test_reasons_in_any_form(text: str, said: str) -> None:
    assert refusal(418, {}, text, "a") == f"server: a answered 418 ({said})"


def streamed(data: bytes, **headers: str) -> ServerBackend:
    kind = {"content-type": "text/event-stream", **headers}
    return answering(lambda request: httpx2.Response(200, headers=kind, content=data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the connection ended before the answer did; ask again"),
        (b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\n', "the connection ended before"),
        (b'data: {"error": {"message": "the engine failed"}}\n\n', "the answer failed (the engine failed)"),
        (b"data: {half\n\n", "it sent what is no chunk of an answer (None)"),
    ],
)
def test_streams_that_break_are_no_answers(data: bytes, message: str) -> None:
    assert message in error_of(streamed(data))


def test_a_web_page_is_no_answer() -> None:
    page = answering(lambda request: httpx2.Response(200, text="<html>"))
    assert "the connection to http://host broke (Expected response with content type" in error_of(page)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (
            httpx2.ConnectError("refused"),
            "cannot be reached (refused); start it with difflm serve MODEL, or mend --server",
        ),
        (httpx2.ConnectTimeout(""), "gave no sign of life in time (ConnectTimeout)"),
        (httpx2.ReadTimeout(""), "gave no sign of life in time (ReadTimeout)"),
        (httpx2.ReadError("reset"), "broke (reset); ask again"),
        (httpx2.RemoteProtocolError(""), "broke (RemoteProtocolError); ask again"),
    ],
)
def test_a_network_that_fails_is_said(failure: Exception, message: str) -> None:
    def fail(request: httpx2.Request) -> httpx2.Response:
        raise failure

    assert message in error_of(answering(fail))


def test_streams_in_any_framing() -> None:
    """CRLF, comments, other fields, no space behind the colon, separators that are no ends of lines, no [DONE]."""
    data = (
        ": hello\r\n\r\nevent: message\r\n"
        'data:{"choices": [{"index": 0, "delta": {"content": "a\u2028b\u0085"}}]}\r\n\r\n'
        'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\r\n\r\n'
    )
    assert Session(streamed(data.encode()), shown).say("in").text == "a\u2028b\u0085"


@pytest.mark.parametrize(
    ("models", "wanted", "message"),
    [
        ({"data": []}, None, "name one of its models as MODEL; there are none"),
        ({"data": [{"id": "a"}, {"id": "b"}]}, None, "name one of its models as MODEL; there are a, b"),
        ({"data": [{"id": "a"}]}, "b", "'b' is not among its models; there are a"),
        ({"models": []}, None, "http://host/v1/models lists no models; is the address right"),
    ],
)
def test_models(models: Any, wanted: str | None, message: str) -> None:
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, json=models))
    with pytest.raises(RequestError, match=message):
        ServerBackend("host", model=wanted, transport=transport)


def test_one_of_several_models_is_named_and_a_foreign_server_is_not_watched() -> None:
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, json={"data": [{"id": "a"}, {"id": "b"}]}))
    backend = ServerBackend("host", model="b", transport=transport)
    assert (backend.model, backend.ours) == ("b", False)
    body = request_body([], Settings(), model="b", ours=False)
    assert body == {"model": "b", "messages": [], "stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("offer", "questions"),
    [({"questions": ["one?", 2, "", "two?"]}, ("one?", "two?")), ({"questions": "one?"}, ()), ({}, ()), ([], ())],
)
def test_questions_are_those_of_the_server(offer: Any, questions: tuple[str, ...]) -> None:
    models = {"data": [{"id": "a", "diffusion": offer}]}
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, json=models))
    assert ServerBackend("host", transport=transport).questions == questions


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://host:1", "http://host:1"),
        ("host:1/", "http://host:1"),
        ("https://host/v1/", "https://host"),
        ("https://host/behind/a/v1", "https://host/behind/a"),
    ],
)
def test_addresses(text: str, address: str) -> None:
    assert address_of(text) == address


@pytest.mark.parametrize("text", ["", "http://", "ftp://host", "http://a b", "http://host?x"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--server: .* is no address; give e\.g\."):
        address_of(text)
