"""The application itself: what it needs, and that defects stay inside."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from difflm.checkpoints.loading import LoadedModel
from difflm.errors import ConfigError
from difflm.serving.app import make_app
from difflm.serving.service import Service
from tests.serving.servers import Running


def without(name: str) -> Callable[..., Any]:
    real = builtins.__import__

    def importing(module: str, *arguments: Any, **options: Any) -> Any:
        if module.split(".")[0] == name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(module, *arguments, **options)

    return importing


def test_without_the_extra_it_says_what_to_install(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(loaded, name="tiny")
    monkeypatch.setattr(builtins, "__import__", without("fastapi"))
    with pytest.raises(ConfigError, match=r"serve: fastapi is not installed; pip install 'difflm\[serve\]'"):
        make_app(service)


def test_a_defect_is_a_500_without_its_reason(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(body: bytes) -> None:
        raise KeyError("secret")

    with monkeypatch.context() as patch:
        patch.setattr(type(server.service.planner), "text", lambda self, body: fails(body))
        response = server.post("/v1/completions", {"prompt": "x"})
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "internal error"
    assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 2}).status_code == 200


def test_a_method_that_there_is_not_names_those_that_there_are(server: Running) -> None:
    response = server.get("/v1/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["/health", "/ready", "/version", "/v1/models", "/metrics", "/"])
def test_a_head_is_a_get_without_its_body(server: Running, path: str) -> None:
    with httpx2.Client(base_url=server.address) as client:
        head, whole = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == whole.headers["content-type"]
        # On the same connection: nothing of a body may be left on it.
        assert client.get("/version").json()["version"]
