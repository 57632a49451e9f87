"""Answers of a server of chat completions. Errors say what to do next."""

from __future__ import annotations

import importlib
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from difflm.chat.chunks import Chunks
from difflm.chat.session import Asked, Message
from difflm.chat.settings import Settings
from difflm.decode.events import Event
from difflm.errors import ConfigError, RequestError

KEY = "DIFFLM_API_KEY"
"""Environment variable with the key that a server asks for."""
CONNECT_SECONDS, READ_SECONDS = 10.0, 300.0
"""For a connection; and for the next sign of life, of an answer that may wait in a queue."""
MOST_BYTES = 16 << 20
"""Of one event of a stream."""

_TOP = {
    "max_new_tokens": "max_tokens",
    **{name: name for name in ("temperature", "top_k", "top_p", "min_p", "seed", "min_tokens", "ignore_eos", "stop")},
    **{name: name for name in ("repetition_penalty", "presence_penalty", "frequency_penalty", "stop_token_ids")},
}
_DIFFUSION = ("block_size", "threshold", "min_accept", "decoding", "policy")


class ServerBackend:
    """A server, over one client.

    Args:
        address: e.g. "http://127.0.0.1:8000"; "/v1" may stand behind it.
        key: that it asks for; None: none.
        model: name of a model there; None: the only one.
        transport: of tests; None: the network.

    Raises:
        ConfigError: no address, or the client is not installed.
        RequestError: the server does not answer, or not as one of chat completions.
    """

    def __init__(
        self, address: str, *, key: str | None = None, model: str | None = None, transport: Any = None
    ) -> None:
        self.address = address_of(address)
        try:
            self._http = importlib.import_module("httpx2")
        except ImportError:
            raise ConfigError("--server: httpx2 is not installed; pip install 'difflm[chat]'") from None
        headers: dict[bytes, bytes] = {}
        if key:
            headers[b"Authorization"] = f"Bearer {key}".encode()
        timeout = self._http.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        self._client = self._http.Client(
            base_url=f"{self.address}/v1/", headers=headers, timeout=timeout, transport=transport
        )
        self.model, about = self._found(model)
        self.ours = about.get("owned_by") == "difflm"
        self.questions = _questions(about)

    @property
    def unset(self) -> str:
        """The server decides."""
        return "the server's"

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _found(self, wanted: str | None) -> tuple[str, dict[str, Any]]:
        """Return the name of the model, and what the server says of it."""
        with self._errors():
            response = self._client.get("models")
            self._check(response)
        try:
            models: dict[str, dict[str, Any]] = {each["id"]: dict(each) for each in response.json()["data"]}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RequestError(f"server: {self.address}/v1/models lists no models; is the address right?") from None
        if wanted is None and len(models) == 1:
            wanted = next(iter(models))
        if wanted is None or wanted not in models:
            told = ", ".join(models) or "none"
            what = "name one of its models as MODEL" if wanted is None else f"{wanted!r} is not among its models"
            raise RequestError(f"server: {what}; there are {told}")
        return wanted, models[wanted]

    def ask(self, messages: Sequence[Message], settings: Settings) -> Asked:
        """Return an answer that is about to come; see `Backend`. Closing it closes the connection, which cancels it."""
        body = request_body(messages, settings, model=self.model, ours=self.ours)
        chosen = ", ".join(f"{name} {value}" for name, value in settings.given.items() if name != "seed")
        chunks = Chunks(model=f"{self.model} at {self.address}", settings=chosen or "as the server decodes")

        def events() -> Generator[Event, None, None]:
            with self._errors(), self._client.stream("POST", "chat/completions", json=body) as response:
                self._check(response)
                for event in self._http.EventSource(response, max_event_size=MOST_BYTES):
                    if event.data == "[DONE]":
                        break
                    yield from chunks.take(_json(event.data))
            yield chunks.finished()

        return Asked(events=events(), decode=chunks.decode, decode_all=chunks.decode, step_map=chunks.step_map)

    def _check(self, response: Any) -> None:
        """Refuse a response that is no answer."""
        if response.status_code != 200:
            response.read()
            raise RequestError(refusal(response.status_code, response.headers, response.text, self.address))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Say what can be done about failures of the network."""
        try:
            yield
        except self._http.ConnectError as error:
            raise RequestError(
                f"server: {self.address} cannot be reached ({_one_line(error)}); start it with difflm serve MODEL, or "
                "mend --server"
            ) from None
        except self._http.TimeoutException as error:
            raise RequestError(
                f"server: {self.address} gave no sign of life in time ({type(error).__name__}); ask again, or look at "
                "its log"
            ) from None
        except (self._http.TransportError, self._http.DecodingError) as error:
            raise RequestError(
                f"server: the connection to {self.address} broke ({_one_line(error)}); ask again"
            ) from None


def _questions(about: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the questions that a server of difflm names; whatever else stands there is none."""
    offer = about.get("diffusion")
    found = offer.get("questions") if isinstance(offer, dict) else None
    return tuple(each for each in found if isinstance(each, str) and each) if isinstance(found, list) else ()


def address_of(text: str) -> str:
    """Return the address of a server without a path of the interface.

    Args:
        text: as given; without a scheme it is http.

    Raises:
        ConfigError: it is none.
    """
    address = (text if "://" in text else f"http://{text}").rstrip("/").removesuffix("/v1").rstrip("/")
    scheme, _, rest = address.partition("://")
    if scheme not in ("http", "https") or not rest.strip("/") or any(each in address for each in " ?#"):
        raise ConfigError(f"--server: {text!r} is no address; give e.g. http://127.0.0.1:8000")
    return address


def request_body(messages: Sequence[Message], settings: Settings, *, model: str, ours: bool) -> dict[str, Any]:
    """Return the body of a request: only what was chosen, everything else is the server's business.

    Args:
        messages: of the conversation.
        settings: how to decode.
        model: its name.
        ours: whether the server is one of difflm, which can tell how it decodes.
    """
    given = settings.given
    body: dict[str, Any] = {"model": model, "messages": list(messages), "stream": True}
    body["stream_options"] = {"include_usage": True, **({"denoising": True} if ours else {})}
    body |= {_TOP[name]: value for name, value in given.items() if name in _TOP}
    if "logit_bias" in given:
        body["logit_bias"] = {str(token): bias for token, bias in given["logit_bias"].items()}
    diffusion: dict[str, Any] = {name: given[name] for name in _DIFFUSION if name in given}
    if "editing_threshold" in given:
        diffusion["editing"] = {"threshold": given["editing_threshold"]}
        if "max_post_steps" in given:
            diffusion["editing"]["max_post_steps"] = given["max_post_steps"]
    return {**body, **({"diffusion": diffusion} if diffusion else {})}


def refusal(status: int, headers: Mapping[str, str], text: str, address: str) -> str:
    """Return what is wrong with a request that a server refused, and what to do next.

    Args:
        status: of the response.
        headers: of the response.
        text: its body.
        address: of the server.
    """
    said, after = _said(text), headers.get("retry-after", "")
    wait = f"in {after} seconds" if after.isdigit() else "later"
    nexts = {
        401: f"give the key that it asks for with --api-key, or in {KEY}",
        403: "reach it under a name that it serves, or start it with --allowed-host NAME",
        404: "is the address right, and the name of the model?",
        408: "ask again",
        413: "/clear or /undo makes the conversation shorter",
        429: f"it has too much to do; ask again {wait}",
        503: f"it is about to stop, or its engine is dead; ask again {wait}, or start it anew with difflm serve",
        504: "it took too long; ask again, or for less with /set max_tokens",
    }
    if status >= 500:
        nexts.setdefault(status, "ask again; its log says more")
    if "context_length_exceeded" in text:
        nexts[400] = "/undo, /clear or /set max_tokens makes room"
    hint = nexts.get(status)
    return f"server: {address} answered {status} ({said})" + (f"; {hint}" if hint else "")


def _said(text: str) -> str:
    """Return the message of an error's body."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    error = value.get("error", value) if isinstance(value, dict) else None
    message = error.get("message", error.get("detail")) if isinstance(error, dict) else error
    return " ".join(str(message or text or "without a reason").split())[:300]


def _json(data: str) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None  # `Chunks` says that it is no chunk


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
