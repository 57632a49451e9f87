"""The description of the endpoints, as /openapi.json has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from difflm.serving.schema import Body, ChatRequest, CompletionRequest

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
}
_SUMMARIES: Mapping[str, str] = {
    "/v1/models": "The model that is served.",
    "/v1/models/{name:path}": "A model by its name.",
    "/health": "Whether the engine is alive.",
    "/ready": "Whether requests are taken.",
    "/version": "Which difflm this is.",
}
_NOT_OK: Mapping[str, tuple[int, ...]] = {"/health": (503,), "/ready": (503,), "/v1/models/{name:path}": (404,)}


def described(path: str) -> dict[str, Any]:
    """Return what a route says about itself: summary, body, responses.

    Args:
        path: of the route.
    """
    if path not in _BODIES:
        responses = {status: {"description": "It is not."} for status in _NOT_OK.get(path, ())}
        return {"summary": _SUMMARIES[path], "responses": responses}
    kind, summary = _BODIES[path]
    failed = {"application/json": {"schema": _ERROR}}
    responses = {status: {"description": text, "content": failed} for status, text in _FAILURES.items()}
    responses[404] = {"description": "There is no such model.", "content": failed}
    body = {"required": True, "content": {"application/json": {"schema": inlined(kind.model_json_schema())}}}
    return {"summary": summary, "responses": responses, "openapi_extra": {"requestBody": body}}


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
