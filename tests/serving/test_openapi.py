"""The description of the interface is whole, and stands by itself."""

from __future__ import annotations

import json

from difflm.serving.openapi import inlined
from difflm.serving.schema import ChatRequest, CompletionRequest
from tests.serving.servers import Running


def test_bodies_are_described_without_references() -> None:
    for kind in (ChatRequest, CompletionRequest):
        schema = inlined(kind.model_json_schema())
        assert "$ref" not in json.dumps(schema)
        assert set(schema["properties"]) == set(kind.model_fields)


def test_every_path_is_described(server: Running) -> None:
    document = server.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    paths = document["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/ready", "/version"} <= set(paths)
    for path in ("/v1/chat/completions", "/v1/completions"):
        operation = paths[path]["post"]
        assert {"200", "400", "404", "413", "415", "429", "500", "503", "504"} <= set(operation["responses"])
        content = operation["requestBody"]["content"]["application/json"]
        assert "properties" in content["schema"]
        for example in content["examples"].values():
            assert server.post(path, example["value"]).status_code == 200
    assert set(paths["/v1/completions"]["post"]["responses"]["200"]["content"]) == {
        "application/json",
        "text/event-stream",
    }
