"""The description of the endpoints, as /openapi.json has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from difflm.serving.schema import Body, ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_FAILURES: Mapping[int, str] = {
    400: "The request has to be changed; `param` names the field.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "The queue is full; `Retry-After` says when to come back.",
    500: "The engine or the server failed.",
    503: "The server is about to stop.",
    504: "The answer took too long.",
}
_BODIES: Mapping[str, tuple[type[Body], str]] = {
    "/v1/chat/completions": (ChatRequest, "Answer a conversation."),
    "/v1/completions": (CompletionRequest, "Go on with a prompt."),
    "/tokenize": (TokenizeRequest, "The ids of a text or a conversation."),
    "/detokenize": (DetokenizeRequest, "The text of ids."),
}
_SUMMARIES: Mapping[str, str] = {
    "/v1/models": "The model that is served.",
    "/v1/models/{name:path}": "A model by its name.",
    "/tokenizer_info": "What is to be known of the tokenizer.",
    "/health": "Whether the engine is alive.",
    "/ready": "Whether requests are taken.",
    "/version": "Which difflm this is.",
    "/metrics": "Metrics in Prometheus' text format.",
}
_ASKED: Mapping[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
_EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "/v1/chat/completions": {
        "whole": _ASKED,
        "stream": {**_ASKED, "stream": True},
        "schema": {
            **_ASKED,
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "answer",
                    "schema": {"type": "object", "properties": {"sure": {"type": "boolean"}}},
                },
            },
        },
    },
    "/v1/completions": {
        "text": {"prompt": "In the beginning", "max_tokens": 8},
        "ids": {"prompt": [[1, 2], [3]], "max_tokens": 4, "temperature": 1, "seed": 1},
        "choice": {"prompt": "In the beginning", "max_tokens": 8, "guided_choice": ["was", "is"]},
        "scores": {"prompt": "In the beginning", "max_tokens": 1, "echo": True, "logprobs": 1},
    },
    "/tokenize": {"text": {"prompt": "In the beginning"}},
    "/detokenize": {"ids": {"tokens": [1, 2, 3]}},
}
_STREAM = "text/event-stream"
_PLAIN = "text/plain"
_ANSWERS: Mapping[str, Mapping[str, Any]] = {
    "application/json": {"type": "object"},
    _STREAM: {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}},
    _PLAIN: {"type": "string"},
}
"""What each media type holds; of a stream, each event."""
_KINDS: Mapping[str, tuple[str, ...]] = {
    "/v1/chat/completions": ("application/json", _STREAM),
    "/v1/completions": ("application/json", _STREAM),
    "/metrics": (_PLAIN,),
}
"""Media types of answers, where they are not JSON alone."""
_ALWAYS = {401: "The API key is missing or wrong.", 403: "The Host header names another host."}


def described(method: str, path: str) -> dict[str, Any]:
    """Return what a route says about itself: name, summary, body, responses.

    Args:
        method: of the route.
        path: of the route.
    """
    failed = {"application/json": {"schema": _ERROR}}
    name = "".join(letter if letter.isalnum() else "_" for letter in f"{method.lower()}{path}").rstrip("_")
    known = dict(_ALWAYS)
    more: dict[str, Any] = {}
    if path in _BODIES:
        kind, summary = _BODIES[path]
        known |= {**_FAILURES, 404: "There is no such model."}
        examples = {name: {"value": value} for name, value in _EXAMPLES[path].items()}
        described_as = {"schema": inlined(kind.model_json_schema()), "examples": examples}
        body = {"required": True, "content": {"application/json": described_as}}
        more = {"openapi_extra": {"requestBody": body}}
    else:
        summary = _SUMMARIES[path]
        known |= {"/health": {503: "It is dead."}, "/ready": {503: "They are not."}}.get(path, {})
        known |= {404: "There is none."} if path in ("/v1/models/{name:path}", "/tokenizer_info") else {}
        if "{name" in path:
            of_name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
            more = {"openapi_extra": {"parameters": [of_name]}}
    responses: dict[int | str, Any] = {
        status: {"description": text, "content": failed} for status, text in known.items()
    }
    kinds = _KINDS.get(path, ("application/json",))
    content = {kind: {"schema": _ANSWERS[kind]} for kind in kinds}
    responses[200] = {"description": "The answer.", "content": content}
    return {"summary": summary, "operation_id": name, "responses": responses, **more}


def inlined(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON schema in which each reference is replaced by what it refers to; there are no circles."""
    definitions: Mapping[str, Any] = schema.get("$defs", {})

    def of(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return of(definitions[str(value["$ref"]).rpartition("/")[2]])
            return {key: of(each) for key, each in value.items() if key != "$defs"}
        return [of(each) for each in value] if isinstance(value, list) else value

    return of(schema)
