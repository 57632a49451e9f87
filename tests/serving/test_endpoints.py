"""What clients get: the engine's own answers, however they are asked for; the real client package, strictly checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from difflm import __version__
from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.decode.engine import Engine, seeds
from difflm.decode.events import Completion
from difflm.decode.policies.named import parse_policy
from difflm.decode.request import SamplingParams
from tests.drafters import drafters
from tests.serving.servers import NAME, Running, serving

__all__ = ["drafters"]
HELLO: list[Any] = [{"role": "user", "content": "in the beginning"}]


def events(server: Running, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the objects of a stream, its form checked."""
    response = server.post(path, {**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    lines = response.text.split("\n\n")
    assert lines[-1] == ""
    assert lines[-2] == "data: [DONE]"
    assert all(line.startswith("data: {") for line in lines[:-2])
    return [json.loads(line.removeprefix("data: "), parse_constant=pytest.fail) for line in lines[:-2]]


def streamed(server: Running, path: str, body: dict[str, Any]) -> dict[int, str]:
    """Return the text of each answer of a stream, joined."""
    texts: dict[int, str] = {}
    for event in events(server, path, body):
        for choice in event["choices"]:
            new = choice["delta"].get("content") or "" if "delta" in choice else choice["text"]
            texts[choice["index"]] = texts.get(choice["index"], "") + new
    return texts


def alone(loaded: LoadedModel, prompt: Any, params: SamplingParams) -> list[Completion]:
    """Return the engine's own answers, each decoded by itself."""
    return [Engine(loaded).generate([prompt], replace(params, n=1, seed=seed))[0] for seed in seeds(params)]


# Invariants.

FIELDS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 1.5, "seed": 4, "top_p": 0.9, "top_k": 40, "min_p": 0.01},
    {"temperature": 1.0, "seed": 5, "n": 3},
    {"temperature": 1.0, "seed": 6, "stop": ["the", "a"]},
    {"temperature": 1.0, "seed": 7, "ignore_eos": True, "stop_token_ids": [100, 101]},
    {"seed": 8, "presence_penalty": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2, "min_tokens": 3},
    {"logit_bias": {"70": 50, "71": -100}},
]
SAMPLING = {"max_tokens": "max_new_tokens"}


def sampling(fields: dict[str, Any], **more: Any) -> SamplingParams:
    given = {SAMPLING.get(name, name): value for name, value in fields.items()}
    if "logit_bias" in given:
        given["logit_bias"] = {int(token): bias for token, bias in given["logit_bias"].items()}
    return SamplingParams(**given, **more)


@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_stream_and_whole_answer_are_the_engines(fields: dict[str, Any], server: Running, loaded: LoadedModel) -> None:
    body = {"prompt": "in the", "max_tokens": 30, "seed": 0, **fields}
    whole = server.post("/v1/completions", body).json()
    texts = streamed(server, "/v1/completions", body)
    expected = alone(loaded, "in the", sampling({name: body[name] for name in body if name != "prompt"}))
    assert [choice["text"] for choice in whole["choices"]] == [each.text for each in expected]
    assert [texts[index] for index in range(len(expected))] == [each.text for each in expected]
    assert [choice["finish_reason"] for choice in whole["choices"]] == [each.finish_reason for each in expected]
    told = [choice["diffusion"]["forwards"] for choice in whole["choices"]]
    assert [sum(each.values()) for each in told] == [
        each.forwards.prefill + each.forwards.denoise + each.forwards.commit for each in expected
    ]


@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_conversations_are_those_of_the_template(fields: dict[str, Any], server: Running, loaded: LoadedModel) -> None:
    body = {"messages": HELLO, "max_tokens": 30, "seed": 0, **fields}
    whole = server.post("/v1/chat/completions", body).json()
    texts = streamed(server, "/v1/chat/completions", body)
    params = sampling({name: body[name] for name in body if name != "messages"})
    expected = [each.text for each in alone(loaded, loaded.encode_chat(HELLO), params)]
    assert [choice["message"]["content"] for choice in whole["choices"]] == expected
    assert [texts[index] for index in range(len(expected))] == expected


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_streamed_tokens_are_the_usage(path: str, n: int, server: Running) -> None:
    asked = {"messages": HELLO} if "chat" in path else {"prompt": "in the"}
    body = {**asked, "max_tokens": 40, "seed": 1, "temperature": 1, "n": n, "stop": "the"}
    body["logprobs"] = True if "chat" in path else 0
    whole = server.post(path, body).json()["usage"]
    options = {"include_usage": True, "continuous_usage_stats": True}
    told = events(server, path, {**body, "stream_options": options})
    tokens = 0
    for event in told:
        for choice in event["choices"]:
            scores = choice["logprobs"] or {}
            tokens += len(scores.get("content") or scores.get("tokens") or ())
        assert event["usage"]["completion_tokens"] == tokens
    assert told[-1]["choices"] == []
    assert told[-1]["usage"] == whole
    assert whole["total_tokens"] == whole["prompt_tokens"] + whole["completion_tokens"]


def test_batched_is_single(server: Running) -> None:
    bodies = [
        {"prompt": f"in the {number}", "max_tokens": 5 + 3 * number, "temperature": 1, "seed": number, "logprobs": 1}
        for number in range(10)
    ]
    single = [server.post("/v1/completions", body).json() for body in bodies]
    with ThreadPoolExecutor(10) as pool:
        together = list(pool.map(lambda body: server.post("/v1/completions", body).json(), bodies))
    for one, other in zip(single, together, strict=True):
        assert one["choices"][0]["text"] == other["choices"][0]["text"]
        assert one["usage"] == other["usage"]
        scores = [each["choices"][0]["logprobs"]["token_logprobs"] for each in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_texts_and_ids_and_lists_of_them_are_one(server: Running, loaded: LoadedModel) -> None:
    ids = loaded.encode("in the beginning")
    for prompt in ("in the beginning", ["in the beginning"], ids, [ids]):
        answer = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 9}).json()
        assert answer["choices"][0]["text"] == alone(loaded, ids, SamplingParams(max_new_tokens=9))[0].text
        assert answer["usage"]["prompt_tokens"] == len(ids)


def test_several_prompts_with_several_answers(server: Running, loaded: LoadedModel) -> None:
    body = {"prompt": ["in", "the word"], "n": 2, "max_tokens": 9, "temperature": 1, "seed": 2}
    answer = server.post("/v1/completions", body).json()
    params = SamplingParams(max_new_tokens=9, temperature=1, seed=2, n=2)
    expected = [each.text for prompt in ("in", "the word") for each in alone(loaded, prompt, params)]
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == list(enumerate(expected))
    assert answer["usage"]["prompt_tokens"] == len(loaded.encode("in")) + len(loaded.encode("the word"))


@pytest.mark.parametrize("policy", ["hf20-greedy", "hf21", "sglang", "dinfer", "native:fixed=2"])
def test_every_policy(policy: str, server: Running, loaded: LoadedModel) -> None:
    body = {"prompt": "in the", "max_tokens": 20, "temperature": 0, "diffusion": {"policy": policy}}
    expected = alone(loaded, "in the", SamplingParams(max_new_tokens=20, policy=parse_policy(policy)))[0]
    assert server.post("/v1/completions", body).json()["choices"][0]["text"] == expected.text
    assert streamed(server, "/v1/completions", body)[0] == expected.text


def test_characters_of_several_tokens_are_never_split(server: Running, loaded: LoadedModel) -> None:
    """U+1FAE0 and U+9F9C have no token of their own in common vocabularies."""
    for text in ("\U0001fae0", "\u9f9c", "\U0001f600"):
        ids = loaded.encode(text)
        bias = {str(token): 100 for token in ids}
        for seed in range(3):
            body = {"prompt": "in", "max_tokens": 24, "temperature": 1, "seed": seed, "logit_bias": bias}
            parts = [
                choice["text"]
                for event in events(server, "/v1/completions", {**body, "diffusion": {"block_size": 1}})
                for choice in event["choices"]
            ]
            for part in parts[:-2]:  # the end may be in the middle of a character
                assert not part.endswith("\ufffd")
            whole = server.post("/v1/completions", {**body, "diffusion": {"block_size": 1}}).json()
            assert "".join(parts) == whole["choices"][0]["text"]


# The client package.


def test_a_conversation_through_the_client(server: Running) -> None:
    client = server.client()
    answer = client.chat.completions.create(
        model=NAME, messages=HELLO, max_completion_tokens=12, logprobs=True, top_logprobs=2, seed=1, stop=["zz"], n=2
    )
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert [choice.message.role for choice in answer.choices] == ["assistant"] * 2
    for choice in answer.choices:
        data = b"".join(bytes(each.bytes) for each in choice.logprobs.content)
        assert data.decode("utf-8", "replace") == choice.message.content
        assert {len(each.top_logprobs) for each in choice.logprobs.content} == {2}


def test_a_stream_of_a_conversation_through_the_client(server: Running) -> None:
    stream = server.client().chat.completions.create(
        model=NAME, messages=HELLO, max_tokens=20, stream=True, stream_options={"include_usage": True}, temperature=1
    )
    told = list(stream)
    assert {each.id for each in told} == {told[0].id}
    assert (told[0].choices[0].delta.role, told[0].choices[0].delta.content) == ("assistant", "")
    assert told[-1].choices == []
    assert told[-1].usage.completion_tokens > 0
    closing = told[-2].choices[0]
    assert closing.finish_reason in ("stop", "length")
    assert closing.delta.content is None
    for each in told[1:-2]:
        assert each.choices[0].finish_reason is None
        assert each.choices[0].delta.content


def test_a_text_through_the_client(server: Running) -> None:
    client = server.client()
    answer = client.completions.create(model=NAME, prompt="in the", max_tokens=12, logprobs=2, temperature=1, seed=1)
    scores = answer.choices[0].logprobs
    assert len(scores.tokens) == len(scores.token_logprobs) == len(scores.text_offset) == 12
    assert answer.object == "text_completion"
    # The package's type of a whole text demands a reason to end of every chunk, and the interface has null there.
    lenient = server.client(_strict_response_validation=False)
    stream = lenient.completions.create(model=NAME, prompt="in the", max_tokens=12, temperature=1, seed=1, stream=True)
    assert "".join(each.choices[0].text for each in stream) == answer.choices[0].text


def test_models_through_the_client(server: Running) -> None:
    openai = pytest.importorskip("openai")
    client = server.client()
    assert [each.id for each in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).object == "model"
    for call in (
        lambda: client.models.retrieve("gpt-4"),
        lambda: client.completions.create(model="gpt-4", prompt="x"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.code == "model_not_found"


def test_errors_through_the_client(server: Running) -> None:
    openai = pytest.importorskip("openai")
    with pytest.raises(openai.BadRequestError, match="tools: ") as caught:
        server.client().chat.completions.create(
            model=NAME, messages=HELLO, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert (caught.value.param, caught.value.type) == ("tools", "invalid_request_error")


def test_diffusion_fields_through_the_client(server: Running, loaded: LoadedModel) -> None:
    editing = {"threshold": 0.5, "max_post_steps": 3}
    extra = {"diffusion": {"block_size": 4, "threshold": 0.3, "editing": editing}}
    answer = server.client().completions.create(model=NAME, prompt="in the", max_tokens=12, extra_body=extra, seed=0)
    params = SamplingParams(max_new_tokens=12, block_size=4, threshold=0.3, editing_threshold=0.5, max_post_steps=3)
    [expected] = alone(loaded, "in the", params)
    assert answer.choices[0].text == expected.text
    own = answer.usage.model_extra["diffusion"]
    assert own["forwards"]["denoise"] == expected.forwards.denoise
    assert own["tokens_per_forward"] == pytest.approx(expected.tokens_per_forward)


def test_shapes_that_other_clients_send(server: Running) -> None:
    """langchain's two classes, lm-eval, guidellm and vLLM's benchmark, as captured."""
    completion = {
        "model": NAME,
        "prompt": ["x"],
        "frequency_penalty": 0,
        "logprobs": None,
        "max_tokens": 6,
        "n": 1,
        "presence_penalty": 0,
        "seed": None,
        "temperature": 0.7,
        "top_p": 1,
    }
    bench = {
        "model": NAME,
        "prompt": "x",
        "repetition_penalty": 1.0,
        "max_tokens": 7,
        "logprobs": None,
        "ignore_eos": True,
    }
    assert server.post("/v1/completions", completion).status_code == 200
    assert server.post("/v1/completions", bench).json()["usage"]["completion_tokens"] == 7
    chat = {"model": NAME, "stream": False, "max_completion_tokens": 7, "stop": ["##"], "temperature": 0.0}
    chat["messages"] = [{"content": "hey", "role": "user"}]
    assert server.post("/v1/chat/completions", chat).status_code == 200
    harness = {
        "messages": HELLO,
        "model": NAME,
        "max_tokens": 8,
        "temperature": 0,
        "stop": ["\n\n", "###"],
        "seed": 1234,
    }
    empty = {"Authorization": "Bearer"}
    assert server.post("/v1/chat/completions", harness, headers=empty).status_code == 200
    load = {"model": NAME, "stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    load["messages"] = [{"role": "user", "content": [{"type": "text", "text": ".."}]}]
    assert events(server, "/v1/chat/completions", {**load, "max_tokens": 5})[-1]["choices"] == []


# Refusals.


@pytest.mark.parametrize(
    "messages",
    [None, "string", [], [123], [{}], [{"role": 123}], [{"role": "user", "content": 123}], [{"role": "user"}]],
    ids=str,
)
def test_conversations_that_are_none(messages: Any, server: Running) -> None:
    response = server.post("/v1/chat/completions", {"messages": messages})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("messages")


@pytest.mark.parametrize(
    "body",
    [{"top_logprobs": 10**9}, {"n": 5_000_000}, {"prompt": [10**8]}, {"logprobs": 10**9}, {"logit_bias": {"99999": 1}}],
    ids=str,
)
def test_one_request_never_harms_the_server(body: dict[str, Any], server: Running) -> None:
    path = "/v1/chat/completions" if "top_logprobs" in body else "/v1/completions"
    given = {"messages": HELLO, "logprobs": True} if "top_logprobs" in body else {"prompt": "in"}
    response = server.post(path, {**given, **body})
    assert response.status_code == 400, response.text
    assert server.get("/health").status_code == 200
    assert server.post("/v1/completions", {"prompt": "in", "max_tokens": 2}).status_code == 200


@pytest.mark.parametrize("policy", [None, "hf20", "native"])
def test_a_temperature_that_float32_does_not_hold_is_answered(policy: str | None, server: Running) -> None:
    body = {"prompt": "in", "max_tokens": 2, "temperature": 1e-310, "diffusion": {"policy": policy}}
    response = server.post("/v1/completions", body)
    assert response.status_code == 200, response.text


def test_only_json_is_read(server: Running) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        headers = {"Content-Type": kind} if kind else {}
        response = httpx2.post(f"{server.address}/v1/completions", content=b'{"prompt": "x"}', headers=headers)
        assert response.status_code == 415
        assert response.json()["error"]["param"] == "content-type"
    response = server.post(
        "/v1/completions", {"prompt": "x"}, headers={"Content-Type": "application/json; charset=utf-8"}
    )
    assert response.status_code == 200


def test_paths_and_methods_that_there_are_not(server: Running) -> None:
    for path, status in (("/nope", 404), ("/v1/completions", 405), ("/v1/models/../../etc/passwd", 404)):
        response = server.get(path)
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


# What there is beside.


def test_health_ready_version(server: Running) -> None:
    assert server.get("/health").json() == {"status": "ok"}
    assert server.get("/ready").json() == {"status": "running"}
    assert server.get("/version").json() == {"version": __version__}


def test_provisional_tokens_come_beside_the_text(server: Running) -> None:
    body = {"messages": HELLO, "max_tokens": 20, "temperature": 1, "seed": 1}
    plain = events(server, "/v1/chat/completions", body)
    told = events(server, "/v1/chat/completions", {**body, "stream_options": {"denoising": True}})
    beside = [each["diffusion"] for each in told if "diffusion" in each]
    assert all(each["choices"] == [] for each in told if "diffusion" in each)
    rest = [[{**choice, "diffusion": None} for choice in each["choices"]] for each in told if "diffusion" not in each]
    assert rest == [[{**choice, "diffusion": None} for choice in each["choices"]] for each in plain]
    filled = {place: token for each in beside for place, token in zip(each["positions"], each["tokens"], strict=True)}
    assert sorted(filled) == list(range(20))


@pytest.fixture(scope="module")
def lossless(drafters: Path) -> Iterator[tuple[Running, LoadedModel]]:
    loaded = load_model(drafters / "drafter")
    with serving(loaded) as running:
        yield running, loaded


def test_a_model_that_drafts_is_decoded_by_drafts_unless_asked_otherwise(lossless: tuple[Running, LoadedModel]) -> None:
    server, loaded = lossless
    body = {"prompt": "in the", "max_tokens": 24, "temperature": 1, "seed": 5}
    found = server.post("/v1/completions", body).json()
    plain = server.post("/v1/completions", {**body, "diffusion": {"decoding": "next_token"}}).json()
    [expected] = alone(
        loaded, "in the", SamplingParams(max_new_tokens=24, temperature=1, seed=5, decoding="next_token")
    )
    assert found["choices"][0]["text"] == plain["choices"][0]["text"] == expected.text
    assert streamed(server, "/v1/completions", body)[0] == expected.text
    own = found["usage"]["diffusion"]
    assert 0 <= own["accepted_tokens"] <= own["drafted_tokens"]
    assert own["drafted_tokens"] > 0
    assert "drafted_tokens" not in plain["usage"]["diffusion"]
    named = server.post("/v1/completions", {**body, "diffusion": {"policy": {"name": "verified", "window": 4}}}).json()
    assert named["choices"][0]["text"] == expected.text
    refused = server.post("/v1/completions", {**body, "diffusion": {"editing": {"threshold": 0.5}}})
    assert refused.json()["error"]["param"] == "diffusion.editing.threshold"
