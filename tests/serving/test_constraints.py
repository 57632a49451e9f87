"""What answers have to match: the same under every name, streamed, whole and in the engine, or refused by name."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from difflm.checkpoints.constraints import Constraint
from difflm.checkpoints.loading import LoadedModel
from difflm.decode.admission import decodings_of
from difflm.decode.engine import generate
from difflm.decode.request import SamplingParams
from difflm.errors import RequestError
from difflm.serving.constraints import FIELDS, STRUCTURED, Later, Wanted, wanted
from difflm.serving.errors import ApiError
from difflm.serving.schema import CompletionRequest
from difflm.serving.service import MOST_GRAMMARS
from tests.decode.grammars import can_go_on, matches, spoken
from tests.decode.test_constraining import CONSTRAINTS
from tests.serving.servers import Running, serving

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"word": {"enum": ["light", "beginning"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["word", "age"],
    "additionalProperties": False,
}
GRAMMAR = 'start: "a" b* "z"\nb: "b" | "cc"'
NAMED = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
SAME: list[tuple[dict[str, Any], Constraint, str]] = [
    ({"response_format": NAMED}, Constraint(json_schema=SCHEMA), "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_object"}}, Constraint(json_object=True), "response_format"),
    (
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        Constraint(json_schema=SCHEMA),
        "response_format.schema",
    ),
    ({"guided_json": SCHEMA}, Constraint(json_schema=SCHEMA), "guided_json"),
    ({"guided_json": json.dumps(SCHEMA)}, Constraint(json_schema=SCHEMA), "guided_json"),
    ({"json_schema": json.dumps(SCHEMA)}, Constraint(json_schema=SCHEMA), "json_schema"),
    ({"guided_regex": "[a-c]{2,5}"}, Constraint(regex="[a-c]{2,5}"), "guided_regex"),
    ({"regex": "[a-c]{2,5}"}, Constraint(regex="[a-c]{2,5}"), "regex"),
    ({"guided_choice": ["a.b", "(c)"]}, Constraint(regex=r"a\.b|\(c\)"), "guided_choice"),
    ({"guided_grammar": GRAMMAR}, Constraint(grammar=GRAMMAR), "guided_grammar"),
    ({"grammar": GRAMMAR}, Constraint(grammar=GRAMMAR), "grammar"),
    ({"structured_outputs": {"json": SCHEMA}}, Constraint(json_schema=SCHEMA), "structured_outputs.json"),
    ({"structured_outputs": {"regex": "[0-9]+"}}, Constraint(regex="[0-9]+"), "structured_outputs.regex"),
    ({"structured_outputs": {"choice": ["a"]}}, Constraint(regex="a"), "structured_outputs.choice"),
    ({"structured_outputs": {"grammar": GRAMMAR}}, Constraint(grammar=GRAMMAR), "structured_outputs.grammar"),
    (
        {"structured_outputs": {"json_object": True, "structural_tag": None}},
        Constraint(json_object=True),
        "structured_outputs.json_object",
    ),
]
HOSTILE = "start: r0\n" + "\n".join(f'r{number}: "a" r{number + 1}' for number in range(3000)) + '\nr3000: "b"'


@pytest.fixture(scope="module")
def causal() -> Iterator[Running]:
    """A server of a model that can be decoded in every way."""
    with serving(spoken(1), prefix_caching=False) as running:
        yield running


def asked(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate_json(json.dumps({"prompt": "in the", **fields}))


def events(server: Running, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    lines = server.post(path, {**body, "stream": True}).text.split("\n\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def streamed(told: list[dict[str, Any]]) -> tuple[str, str | None]:
    """Return text and reason of a stream of one answer."""
    text, reason = "", None
    for event in told:
        for choice in event["choices"]:
            text += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
            reason = choice["finish_reason"] or reason
    return text, reason


def refused(server: Running, path: str, body: dict[str, Any], param: str) -> str:
    response = server.post(path, body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param, error
    return error["message"]


# Names.


@pytest.mark.parametrize(("fields", "constraint", "param"), SAME, ids=lambda value: str(value)[:40])
def test_every_name_means_the_same(fields: dict[str, Any], constraint: Constraint, param: str) -> None:
    found = wanted(asked(**fields))
    assert found is not None
    assert (found.constraint.field, found.constraint.text) == (constraint.field, constraint.text)
    assert found.param == param


def test_all_names_of_the_tables_are_tried() -> None:
    tried = {name for fields, _, _ in SAME for name in fields}
    assert {*FIELDS, "response_format", "structured_outputs"} == tried
    inner = {name for fields, _, _ in SAME for name in fields.get("structured_outputs", {})}
    assert set(STRUCTURED) <= inner


def test_nothing_is_wanted_where_nothing_is_said() -> None:
    for fields in ({}, {"response_format": {"type": "text"}}, {"guided_json": None, "structured_outputs": None}):
        assert wanted(asked(**fields)) is None


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"regex": "a", "guided_json": {}}, "regex", "guided_json is given as well"),
        ({"response_format": NAMED, "grammar": GRAMMAR}, "grammar", "response_format.json_schema.schema is given"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice", "regex is given as"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs", "it says nothing; give one of json"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "it is not served"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "it is missing"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
            "it is missing; for any object",
        ),
        ({"response_format": {**NAMED, "type": "json_object"}}, "response_format.json_schema", "it needs the type"),
        ({"guided_choice": []}, "guided_choice", "it is empty"),
        ({"guided_json": "[1]"}, "guided_json", "it is no object|is no object"),
        ({"guided_json": "{"}, "guided_json", "it is no JSON"),
        ({"regex": "a" * 70_000}, "regex", "70000 characters; give at most 65536"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_constraint_is_refused(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        wanted(asked(**fields))
    assert (caught.value.status, caught.value.param) == (400, param)
    assert re.search(message, caught.value.message), caught.value.message
    assert caught.value.message.startswith(f"{param}: ")


def test_choices_are_taken_literally(loaded: LoadedModel) -> None:
    texts = ["a.b", "(c)", "d|e", "f\\g", "h^$", "#i ~&-", "j\nk", "[l]{2}*+?"]
    found = wanted(asked(guided_choice=texts))
    assert found is not None
    for text in texts:
        matcher = loaded.grammar(found.constraint).matcher()
        assert all(matcher.take(token) for token in loaded.encode(text)), text
        assert matcher.accepts(), text
    matcher = loaded.grammar(found.constraint).matcher()
    assert not all(matcher.take(token) for token in loaded.encode("aXb"))


def test_an_error_has_the_name_that_the_request_has() -> None:
    want = Wanted(Constraint(regex="a"), "guided_regex")
    assert want.refused(RequestError("regex: it cannot be used")).message == "guided_regex: it cannot be used"
    assert want.refused(RequestError("of no field")).message == "guided_regex: of no field"
    with pytest.raises(AssertionError):
        Later().matcher()


# Answers.


@pytest.mark.parametrize(("fields", "constraint", "param"), SAME[:2] + SAME[6:10], ids=lambda value: str(value)[:40])
def test_whole_streamed_and_the_engines_own(
    fields: dict[str, Any], constraint: Constraint, param: str, causal: Running
) -> None:
    server, loaded = causal, causal.service.loaded
    assert decodings_of(loaded) == ("block", "next_token", "verified")
    for decoding in decodings_of(loaded):
        sampling: dict[str, Any] = {"max_tokens": 48, "temperature": 1.2, "seed": 3}
        body = {"prompt": "in the", **sampling, **fields, "diffusion": {"decoding": decoding}}
        params = SamplingParams(max_new_tokens=48, temperature=1.2, seed=3, decoding=decoding, constraint=constraint)
        [expected] = generate(loaded, ["in the"], params)
        [choice] = server.post(TEXT, body).json()["choices"]
        assert (choice["text"], choice["finish_reason"]) == (expected.text, expected.finish_reason)
        assert streamed(events(server, TEXT, body)) == (expected.text, expected.finish_reason)
        check(loaded, constraint, choice["text"], choice["finish_reason"])


def check(loaded: LoadedModel, constraint: Constraint, text: str, reason: str) -> None:
    if reason == "length":
        matcher = loaded.grammar(constraint).matcher()
        assert all(matcher.take(token) for token in loaded.encode(text.rstrip("\ufffd"))), text
    elif constraint.grammar is None:
        assert matches(constraint, text), text


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    CONSTRAINTS,
    st.sampled_from(["block", "next_token", "verified"]),
    st.integers(0, 99),
    st.integers(1, 40),
    st.booleans(),
)
def test_what_stops_matches_and_what_is_cut_begins_a_match(
    server: Running, loaded: LoadedModel, constraint: Constraint, decoding: str, seed: int, most: int, chat: bool
) -> None:
    if decoding not in decodings_of(loaded):
        decoding = "block"
    value = json.loads(constraint.text) if constraint.field == "json_schema" else constraint.text
    fields = {"guided_json" if constraint.field == "json_schema" else "guided_regex": value}
    body = {"max_tokens": most, "temperature": 2, "seed": seed, "diffusion": {"decoding": decoding}, **fields}
    if chat:
        response = server.post(CHAT, {**body, "messages": [{"role": "user", "content": "in the"}]})
    else:
        response = server.post(TEXT, {**body, "prompt": "in the"})
    assert response.status_code == 200, response.text
    [choice] = response.json()["choices"]
    text = choice["message"]["content"] if chat else choice["text"]
    assert choice["finish_reason"] in ("stop", "length")
    if choice["finish_reason"] == "stop":
        assert matches(constraint, text), text
    else:
        whole = loaded.encode(text.rstrip("\ufffd"))
        assert can_go_on(loaded, constraint, whole), text


def test_n_answers_and_prompts_all_match(server: Running) -> None:
    body = {"prompt": ["in", "the"], "n": 3, "max_tokens": 100, "temperature": 2, "seed": 1, "response_format": NAMED}
    choices = server.post(TEXT, body).json()["choices"]
    assert len(choices) == 6
    for choice in choices:
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(choice["text"]), SCHEMA)
    assert len({choice["text"] for choice in choices}) > 1


def test_echo_without_scores_repeats_the_prompt_before_a_match(server: Running) -> None:
    [choice] = server.post(TEXT, {"prompt": "in the", "echo": True, "regex": "[ab]{3}", "max_tokens": 9}).json()[
        "choices"
    ]
    assert re.fullmatch("in the[ab]{3}", choice["text"])


# What does not go together.


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"ignore_eos": True}, "ignore_eos", "beside a constraint"),
        ({"min_tokens": 3}, "min_tokens", "beside a constraint"),
        ({"stop": ["a"]}, "stop", "it cannot be used beside regex: what is cut there would not match"),
        ({"echo": True, "logprobs": 1}, "regex", "it cannot be used beside echo with logprobs"),
        ({"diffusion": {"editing": {"threshold": 0.5}}}, "diffusion.editing.threshold", "beside a constraint"),
        ({"diffusion": {"policy": "hf21"}}, "diffusion.policy", "policy Hf21: it cannot be constrained"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_beside_a_constraint(fields: dict[str, Any], param: str, message: str, server: Running) -> None:
    body = {"prompt": "in the", "max_tokens": 8, "regex": "[a-c]+"}
    assert re.search(message, refused(server, TEXT, {**body, **fields}, param))


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"guided_regex": "["}, "guided_regex", "it cannot be used .*unclosed"),
        ({"guided_json": {"not": {}}}, "guided_json", "it cannot be used .*not"),
        ({"grammar": "start: b"}, "grammar", "it cannot be used"),
        ({"grammar": HOSTILE}, "grammar", "it takes more than the 1 seconds"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_enforced_is_refused_and_the_server_goes_on(
    fields: dict[str, Any], param: str, message: str, server: Running
) -> None:
    for path, begun in ((TEXT, {"prompt": "in"}), (CHAT, {"messages": [{"role": "user", "content": "in"}]})):
        said = refused(server, path, {**begun, "max_tokens": 4, **fields}, param)
        assert re.match(f"{re.escape(param)}: {message}", said), said
    assert server.get("/health").status_code == 200


def test_an_answer_that_takes_too_much_work_fails_alone(server: Running) -> None:
    hostile = {"prompt": "in the", "max_tokens": 40, "regex": "(a{1000}){1000}"}
    plain = {"prompt": "in the", "max_tokens": 24}
    expected = server.post(TEXT, plain).json()["choices"][0]["text"]
    with ThreadPoolExecutor(4) as pool:
        bodies = [hostile, plain, hostile, plain]
        responses = list(pool.map(lambda body: server.post(TEXT, body), bodies))
    for response in responses[::2]:
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "regex"
        assert "takes more work than there is" in response.json()["error"]["message"]
    assert [response.json()["choices"][0]["text"] for response in responses[1::2]] == [expected] * 2
    assert events(server, TEXT, hostile)[-1]["error"]["param"] == "regex"
    assert server.service.bridge.counts.failures == 0


def test_a_constraint_that_is_known_waits_for_no_other(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"prompt": "in the", "max_tokens": 9, "regex": "kn[ow]{2}"}
    first = server.post(TEXT, body).json()["choices"]
    monkeypatch.setattr(type(server.service.planner), "constrained", None)
    second = server.post(TEXT, body).json()["choices"]
    assert second[0]["text"] == first[0]["text"]


def test_so_many_constraints_may_wait(server: Running) -> None:
    service = server.service
    server.on_loop(lambda: setattr(service, "_compiling", MOST_GRAMMARS))
    try:
        response = server.post(TEXT, {"prompt": "in the", "max_tokens": 9, "regex": "w[ait]{3}"})
    finally:
        server.on_loop(lambda: setattr(service, "_compiling", 0))
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert server.post(TEXT, {"prompt": "in the", "max_tokens": 9}).status_code == 200


def test_without_the_library_it_says_how_to_get_it(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with serving(replace(loaded)) as alone:
        body = {"prompt": "in", "max_tokens": 4}
        said = refused(alone, TEXT, {**body, "response_format": {"type": "json_object"}}, "response_format")
        assert "pip install 'difflm[constrain]'" in said
        assert alone.post(TEXT, body).status_code == 200
        assert alone.get("/v1/models").json()["data"][0]["diffusion"]["constraints"] == []
