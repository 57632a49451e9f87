"""Ids of /tokenize are those with which a prompt is answered, and come back as its text."""

from __future__ import annotations

from typing import Any

import pytest

from difflm.checkpoints.loading import LoadedModel
from tests.serving.servers import NAME, Running, serving


@pytest.mark.parametrize("text", ["in the beginning", "na\u00efve \U0001fae0", "", "<|user|>", " a  b\n"])
def test_there_and_back(text: str, server: Running, loaded: LoadedModel) -> None:
    answer = server.post("/tokenize", {"prompt": text, "model": NAME, "add_special_tokens": False}).json()
    assert answer == {"tokens": loaded.encode(text), "count": len(loaded.encode(text)), "max_model_len": 512}
    assert server.post("/detokenize", {"tokens": answer["tokens"], "model": NAME}).json() == {"prompt": text}


def test_conversations_are_counted_as_they_are_answered(server: Running) -> None:
    messages = [{"role": "user", "content": "in the beginning"}]
    count = server.post("/tokenize", {"messages": messages}).json()["count"]
    usage = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 1}).json()["usage"]
    assert usage["prompt_tokens"] == count


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": True}, "add_special_tokens"),
        ("/tokenize", {"prompt": [1]}, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "model"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [1, 10**7]}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
    ],
    ids=str,
)
def test_refused(path: str, body: dict[str, Any], param: str, server: Running) -> None:
    response = server.post(path, body)
    assert response.status_code == (404 if param == "model" else 400)
    assert response.json()["error"]["param"] == param


def test_what_a_client_with_a_renderer_of_its_own_asks(server: Running, loaded: LoadedModel) -> None:
    facts = server.get("/tokenizer_info").json()
    assert facts["eos_token"] == "<|endoftext|>"
    assert facts["chat_template"] == loaded.require_tokenizer().chat_template
    assert (facts["mask_token"], facts["model_max_length"]) == (loaded.config.mask_token, 512)


def test_without_a_tokenizer_ids_are_served_and_texts_refused(loaded: LoadedModel) -> None:
    with serving(LoadedModel(loaded.model, None, loaded.config, loaded.path)) as server:
        assert server.get("/tokenizer_info").status_code == 404
        assert server.post("/detokenize", {"tokens": [1]}).status_code == 404
        assert server.post("/tokenize", {"prompt": "a"}).status_code == 400
        assert server.post("/v1/completions", {"prompt": "a"}).json()["error"]["param"] == "prompt"
        answer = server.post("/v1/completions", {"prompt": [1, 2], "max_tokens": 3, "logprobs": 1}).json()
        assert answer["usage"]["completion_tokens"] == 3
        messages = [{"role": "user", "content": "a"}]
        assert server.post("/v1/chat/completions", {"messages": messages}).status_code == 400
