"""Public bug reports of other servers as tests over HTTP, named after their numbers in docs/reports.md."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.decode.engine import generate
from difflm.decode.request import SamplingParams
from difflm.serving.bridge import QueueLimits
from difflm.serving.limits import Limits
from tests.serving.scripted import MARKED, speaking
from tests.serving.servers import Running, request_bytes, serving, until

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO: list[Any] = [{"role": "user", "content": "in the beginning"}]


def parts(server: Running, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the events of a stream."""
    lines = server.post(path, {**body, "stream": True}).text.split("\n\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def test_report_45_the_seed_counts_and_is_not_frozen(server: Running) -> None:
    body = {"prompt": "in the", "max_tokens": 24, "temperature": 1.5}

    def texts(**more: Any) -> list[str]:
        return [choice["text"] for choice in server.post(TEXT, {**body, **more}).json()["choices"]]

    assert texts(seed=1) == texts(seed=1) != texts(seed=2)
    assert len({texts()[0] for _ in range(3)}) == 3
    assert len(set(texts(seed=1, n=4))) == 4


def test_report_47_who_else_is_asked_changes_no_answer(server: Running) -> None:
    bodies = [{"prompt": f"the {number}", "max_tokens": 9 + number, "temperature": 1, "seed": 1} for number in range(6)]
    alone = [server.post(TEXT, body).json()["choices"][0]["text"] for body in bodies]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda body: server.post(TEXT, body).json()["choices"][0]["text"], bodies))
    assert together == alone


def test_report_51_no_part_of_a_stop_string_is_streamed(loaded: LoadedModel) -> None:
    with speaking(loaded, MARKED) as speaker:
        speaker.says("in the beginning was a word")
        body = {"messages": HELLO, "max_tokens": 40, "stop": ["ning was"], "diffusion": {"block_size": 1}}
        told = parts(speaker.server, CHAT, body)
        text = ""
        for event in told:
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
                assert "in the begin".startswith(text)
        assert text == "in the begin"
        assert (told[-1]["choices"][0]["finish_reason"], told[-1]["choices"][0]["stop_reason"]) == ("stop", "ning was")


def test_report_52_characters_come_whole(loaded: LoadedModel) -> None:
    said = "na\u00efve \U0001fae0\u9f9c\U0001f600"
    with speaking(loaded, MARKED) as speaker:
        speaker.says(said)
        told = parts(speaker.server, CHAT, {"messages": HELLO, "max_tokens": 60, "diffusion": {"block_size": 1}})
        texts = [choice["delta"].get("content") or "" for event in told for choice in event["choices"]]
        assert "".join(texts) == said
        assert all(text in said for text in texts)


def test_report_53_an_echo_with_logprobs_scores_the_prompt(server: Running, loaded: LoadedModel) -> None:
    body = {"prompt": "in the beginning", "echo": True, "logprobs": 1, "max_tokens": 1}
    scores = server.post(TEXT, body).json()["choices"][0]["logprobs"]["token_logprobs"]
    assert len(scores) == len(loaded.encode("in the beginning")) + 1
    assert scores[0] is None
    assert all(value < 0 for value in scores[1:])


@pytest.mark.parametrize("stream", [False, True])
def test_report_54_who_has_left_is_not_answered(stream: bool, server: Running) -> None:
    cancelled = server.service.bridge.counts.cancelled
    body = {"prompt": "in the", "max_tokens": 450, "ignore_eos": True, "stream": stream, "n": 8}
    body["diffusion"] = {"threshold": 1}
    with server.connect() as connection:
        connection.sendall(request_bytes(TEXT, body))
        until(lambda: server.service.bridge.active == 8)
    until(lambda: server.service.bridge.active == 0)
    until(lambda: server.service.bridge.running == 0)
    assert server.service.bridge.counts.cancelled == cancelled + 8


@pytest.mark.parametrize(
    "fields",
    [
        {"top_logprobs": 10**9, "logprobs": True},
        {"n": 5 * 10**6},
        {"logit_bias": {"99999999999": 1}},
        {"stop_token_ids": [10**9]},
        {"max_tokens": 10**12},
        {"seed": 10**30},
        {"temperature": 1e308},
        {"diffusion": {"block_size": 10**9}},
    ],
    ids=str,
)
def test_report_55_absurd_numbers_are_the_requests_own_trouble(fields: dict[str, Any], server: Running) -> None:
    response = server.post(CHAT, {"messages": HELLO, "max_tokens": 4, **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"]
    assert server.post(CHAT, {"messages": HELLO, "max_tokens": 4}).status_code == 200


def test_report_56_a_prompt_that_does_not_fit_is_refused(server: Running) -> None:
    for path, body in (
        (TEXT, {"prompt": "word " * 900}),
        (CHAT, {"messages": [{"role": "user", "content": "word " * 900}]}),
    ):
        response = server.post(path, {**body, "max_tokens": 4})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_report_57_the_chunk_that_ends_has_no_text(path: str, server: Running) -> None:
    asked = {"messages": HELLO} if path == CHAT else {"prompt": "in the"}
    told = parts(server, path, {**asked, "max_tokens": 20, "temperature": 1})
    ends = [choice for event in told for choice in event["choices"] if choice["finish_reason"]]
    assert [choice.get("delta", choice.get("text")) for choice in ends] == [{} if path == CHAT else ""]


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_report_58_the_chunk_with_the_usage_has_choices(path: str, server: Running) -> None:
    asked = {"messages": HELLO} if path == CHAT else {"prompt": "in the"}
    told = parts(server, path, {**asked, "max_tokens": 5, "stream_options": {"include_usage": True}})
    assert told[-1]["choices"] == []
    assert told[-1]["usage"]["completion_tokens"] == 5
    assert all(event["usage"] is None for event in told[:-1])


def test_report_59_a_token_that_is_forbidden_leaves_the_answer_json(server: Running, loaded: LoadedModel) -> None:
    bias = {str(token): -100 for token in range(loaded.config.model.vocab_size - 40)}
    body = {"messages": HELLO, "max_tokens": 8, "top_p": 0.01, "temperature": 1, "logit_bias": bias}
    response = server.post(CHAT, {**body, "logprobs": True, "top_logprobs": 20})
    assert response.status_code == 200
    content = json.loads(response.text, parse_constant=pytest.fail)["choices"][0]["logprobs"]["content"]
    values = [top["logprob"] for each in content for top in each["top_logprobs"]]
    assert min(values) >= -9999


@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template": "{% for a in range(10**9) %}{% endfor %}"},
        {"chat_template_kwargs": {"chat_template": "{{ 'a' * 10**9 }}"}},
        {"chat_template_kwargs": {"tokenize": True}},
    ],
    ids=str,
)
def test_report_60_no_template_comes_from_a_request(fields: dict[str, Any], server: Running) -> None:
    response = server.post(CHAT, {"messages": HELLO, "max_tokens": 4, **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, next(iter(fields)))
    # Nor are template marks in a message anything but text.
    marks = [{"role": "user", "content": "{{ 7 * 7 }}"}]
    tokens = server.post("/tokenize", {"messages": marks}).json()["tokens"]
    assert "{{ 7 * 7 }}" in server.post("/detokenize", {"tokens": tokens}).json()["prompt"]


def test_report_61_a_body_has_a_bound(loaded: LoadedModel) -> None:
    with serving(loaded, limits=Limits(body_bytes=5000)) as running:
        response = running.post(TEXT, {"prompt": "a" * 6000})
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


def test_report_62_a_queue_has_a_bound(loaded: LoadedModel) -> None:
    with serving(loaded, max_requests=1, queue=QueueLimits(requests=2, tokens=10_000)) as running:
        bridge = running.service.bridge
        engine = bridge._engine
        run = engine.runner.run
        engine.runner.run = lambda works: time.sleep(0.02) or run(works)  # type: ignore[method-assign]
        body = {"prompt": "in the", "max_tokens": 400, "ignore_eos": True, "diffusion": {"threshold": 1}}
        first: socket.socket = running.connect()
        first.sendall(request_bytes(TEXT, body))
        until(lambda: bridge.running == 1)
        # A request for several answers counts as so many.
        assert running.post(TEXT, {**body, "n": 3}).status_code == 429
        first.close()
        until(lambda: bridge.active == 0)


def test_report_63_there_are_completions(server: Running, loaded: LoadedModel) -> None:
    [expected] = generate(loaded, ["in the"], SamplingParams(max_new_tokens=5))
    assert server.post(TEXT, {"prompt": ["in the"], "max_tokens": 5}).json()["choices"][0]["text"] == expected.text


def test_report_64_code_of_a_checkpoint_is_never_run(loaded: LoadedModel, tmp_path: Path) -> None:
    folder, canary = tmp_path / "model", tmp_path / "canary"
    folder.mkdir()
    for file in loaded.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    code = f"open({str(canary)!r}, 'w').close()\n"
    for name in ("modeling_x.py", "configuration_x.py", "tokenization_x.py"):
        (folder / name).write_text(code)
    classes = {"AutoConfig": "configuration_x.C", "AutoModelForCausalLM": "modeling_x.M", "AutoModel": "modeling_x.M"}
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        path = folder / name
        facts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        facts |= {"auto_map": {**classes, "AutoTokenizer": ["tokenization_x.T", None]}, "trust_remote_code": True}
        path.write_text(json.dumps(facts), encoding="utf-8")
    with serving(load_model(folder)) as running:
        body = {"messages": HELLO, "max_tokens": 4, "trust_remote_code": True}
        assert running.post(CHAT, body).status_code == 200
    assert not canary.exists()
