"""Options of the command arrive, and what is served is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.errors import RequestError
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
    assert lines[2].startswith("http://127.0.0.1:1\ncurl http://127.0.0.1:1/v1/chat/completions -H ")


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


def test_a_model_that_drafts_says_so(drafters: Path) -> None:
    loaded = load_model(drafters / "drafter")
    found = served(loaded, Options(), fallback_name="drafter", say=lambda line: None)
    assert introduction(found.service)[1] == "where a request does not say: decoding verified, temperature 0"


def test_models_without_a_template_or_a_tokenizer_have_another_example(loaded: LoadedModel) -> None:
    bare = LoadedModel(loaded.model, None, loaded.config, loaded.path)
    service = served(bare, Options(), fallback_name="bare", say=lambda line: None).service
    assert '"prompt": [1, 2, 3]' in example(service, "http://x")
    assert "without a chat template" in introduction(service)[0]
