"""Options of the command arrive, and what is served is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.errors import ConfigError, RequestError
from difflm.serving.setup import Options, example, introduction, served
from tests.drafters import drafters

__all__ = ["drafters"]


def test_options_arrive(loaded: LoadedModel) -> None:
    lines: list[str] = []
    options = Options(
        name="mine",
        port=0,
        policy="hf21:threshold=0.6",
        max_new_tokens=50,
        max_requests=3,
        max_queue=4,
        max_queue_tokens=500,
        grace=7,
        temperature=0.5,
        prefix_caching=False,
    )
    found = served(loaded, options, fallback_name="other", say=lines.append)
    service = found.service
    assert service.name == service.planner.name == "mine"
    assert service.defaults.policy == ("hf21", {"threshold": 0.6})
    assert service.defaults.temperature == 0.5
    assert service.limits.new_tokens == 50
    assert (service.bridge.limits.requests, service.bridge.limits.tokens) == (4, 500)
    assert found.binding.grace_seconds == 7
    assert lines[1] == "where a request does not say: decoding hf21, temperature 0.5"
    found.on_start("http://127.0.0.1:1")
    assert lines[2] == (
        "access: no API key is asked for, hosts localhost, 127.0.0.1, [::1], ::1, pages of no other site"
    )
    assert lines[3].startswith("http://127.0.0.1:1\ncurl http://127.0.0.1:1/v1/chat/completions -H ")
    assert "\nor open http://127.0.0.1:1/ in a browser" in lines[3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "nope"}, "policy: 'nope' is unknown"),
        ({"policy": "hf21:nope=1"}, "it has no setting 'nope'"),
        ({"cache_gib": 0.0}, "--cache-gib"),
        ({"grace": -1.0}, "--grace"),
        ({"temperature": -1.0}, "--temperature"),
    ],
)
def test_what_can_be_refused_before_loading_is(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Options(**options).check()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("hf21:gen_length=16", "gen_length is not for requests"),
        ("verified", "verified"),
    ],
)
def test_defaults_that_would_refuse_every_request_are_refused_at_the_start(
    chosen: str, message: str, loaded: LoadedModel
) -> None:
    told: list[str] = []
    with pytest.raises(RequestError, match="these options refuse every request that names nothing else: .*" + message):
        served(loaded, Options(policy=chosen), fallback_name="tiny", say=told.append)
    assert told == []


def test_a_model_that_drafts_says_so(drafters: Path) -> None:
    loaded = load_model(drafters / "drafter")
    found = served(loaded, Options(), fallback_name="drafter", say=lambda line: None)
    assert introduction(found.service)[1] == "where a request does not say: decoding verified, temperature 0"


def test_models_without_a_template_or_a_tokenizer_have_another_example(loaded: LoadedModel) -> None:
    bare = LoadedModel(loaded.model, None, loaded.config, loaded.path)
    service = served(bare, Options(), fallback_name="bare", say=lambda line: None).service
    assert '"prompt": [1, 2, 3]' in example(service, "http://x")
    assert "without a chat template" in introduction(service)[0]


def test_keys_come_from_the_environment_and_a_file_and_are_never_shown(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text("second\n\nthird \u00e9\n", encoding="utf-8")
    monkeypatch.setenv("DIFFLM_API_KEYS", "first")
    lines: list[str] = []
    options = Options(api_key_file=tmp_path / "keys", host="0.0.0.0")
    service = served(loaded, options, fallback_name="tiny", say=lines.append).service
    assert service.access.keys == ("first", "second", "third", "\u00e9")
    assert service.access.hosts == ()
    assert "4 API keys, any host" in lines[2]
    assert "Bearer KEY" in example(service, "http://x")
    assert not any(key in "".join(lines) + repr(service.access) for key in ("first", "second", "third"))


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"])
def test_a_file_without_keys_leaves_no_server_open(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="--api-key-file: "):
        _ = Options(api_key_file=path).access


def test_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Options(host="127.0.0.1", allowed_host=("Mine.example",)).access.hosts == ("mine.example",)
    assert "localhost" in Options(host="localhost").access.hosts
