"""Functions that a conversation may call: shown to the template, read from the answer, refused where neither can be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from difflm.checkpoints.loading import LoadedModel
from difflm.serving.calls import CallFormat
from difflm.serving.errors import ApiError
from difflm.serving.schema import ChatRequest
from difflm.serving.tools import Offer, ToolTemplate, offer_of
from tests.serving.scripted import BARE, MARKED, Speaker, speaking, with_template
from tests.serving.servers import NAME, Running

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "description": "of a city", "parameters": PARAMETERS},
}
ADD: Any = {"type": "function", "function": {"name": "add"}}
ASKED: list[Any] = [{"role": "user", "content": "in the light"}]
ROME = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
BODY: dict[str, Any] = {"messages": ASKED, "tools": [WEATHER, ADD], "max_tokens": 200}


@pytest.fixture(scope="module")
def speaker(loaded: LoadedModel) -> Iterator[Speaker]:
    with speaking(loaded, MARKED) as found:
        yield found


def asked(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate_json(json.dumps({"messages": ASKED, **fields}))


def offer(loaded: LoadedModel, template: str = MARKED, **fields: Any) -> Offer:
    return offer_of(asked(**fields), ToolTemplate(with_template(loaded, template)))


# Which form calls have.


def test_the_form_of_calls_is_the_templates(loaded: LoadedModel) -> None:
    marked = ToolTemplate(with_template(loaded, MARKED)).format()
    assert marked == CallFormat(opening="<tool_call>", closing="</tool_call>", arguments="arguments")
    assert ToolTemplate(with_template(loaded, BARE)).format() == CallFormat(arguments="parameters")


XML = BARE.replace('{"name": "{{ c.function.name }}"', '<call name="{{ c.function.name }}"')
REFUSING = MARKED.replace("{% for c in", "{% if m.tool_calls %}{{ raise_exception('no calls') }}{% endif %}{% for c in")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>", "does not read them"),
        (XML, 'writes a call as \'<call name="probe_function"'),
        (MARKED.replace("</tool_call>", ""), "which is not read here"),
        (MARKED.replace('"name"', '"function"'), "which is not read here"),
        (REFUSING, "renders no call .*no calls"),
    ],
)
def test_other_forms_are_refused(template: str, message: str, loaded: LoadedModel) -> None:
    with pytest.raises(ApiError) as caught:
        offer(loaded, template, tools=[WEATHER])
    assert re.search(message, caught.value.message)
    assert (caught.value.param, caught.value.status) == ("tools", 400)
    assert str(loaded.path) not in caught.value.message


# What may be asked for.


def test_an_offer(loaded: LoadedModel) -> None:
    found = offer(loaded, tools=[WEATHER, ADD])
    assert (found.tools, found.names, found.single) == ([WEATHER, ADD], ("weather", "add"), False)
    assert offer(loaded, tools=[WEATHER], tool_choice="auto", parallel_tool_calls=False).single
    none: Any = {"tools": [WEATHER], "tool_choice": "none"}
    nothing: list[dict[str, Any]] = [{}, {"tools": []}, none, {"tool_choice": "auto"}]
    for fields in nothing:
        assert offer(loaded, **fields) == Offer()
        assert offer(loaded, **fields).reader() is None


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"tool_choice": "required"}, "tool_choice", "it needs tools"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name", "'weather' is given twice"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
            "'x' is none of tools; give one of weather",
        ),
    ],
    ids=str,
)
def test_refused(fields: dict[str, Any], param: str, message: str, loaded: LoadedModel) -> None:
    with pytest.raises(ApiError) as caught:
        offer(loaded, **fields)
    assert (caught.value.param, caught.value.message) == (param, f"{param}: {message}")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [ADD] * 129}, "tools"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tool_choice": "any"}, "tool_choice"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_malformed(fields: dict[str, Any], param: str, speaker: Speaker) -> None:
    response = speaker.server.post("/v1/chat/completions", {"messages": ASKED, **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


# What is answered.


def events(server: Running, body: dict[str, Any]) -> list[dict[str, Any]]:
    text = server.post("/v1/chat/completions", {**body, "stream": True}).text
    return [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]


def joined(told: list[dict[str, Any]]) -> tuple[str, list[tuple[str, str]], str]:
    """Return content, calls and reason of a stream, put together as clients do."""
    content, calls, reason = "", dict[int, dict[str, str]](), ""
    for event in told:
        for choice in event["choices"]:
            content += choice["delta"].get("content") or ""
            for part in choice["delta"].get("tool_calls", []):
                call = calls.setdefault(part["index"], {"id": "", "name": "", "arguments": ""})
                call["id"] += part.get("id", "")
                for name, value in part["function"].items():
                    call[name] += value
            reason = choice["finish_reason"] or reason
    assert len({call["id"] for call in calls.values()}) == len(calls)
    return content, [(call["name"], call["arguments"]) for _, call in sorted(calls.items())], reason


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (ROME, None, [("weather", '{"city": "Rome"}')]),
        (f"a word.\n{ROME}\n{ROME}", "a word.", [("weather", '{"city": "Rome"}')] * 2),
        ("in the light", "in the light", []),
        (ROME.replace("weather", "other"), ROME.replace("weather", "other"), []),
        (ROME.replace("}}", "}"), ROME.replace("}}", "}"), []),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_calls_whole_and_streamed(
    text: str, content: str | None, calls: list[tuple[str, str]], speaker: Speaker
) -> None:
    speaker.says(text)
    whole = speaker.server.post("/v1/chat/completions", BODY).json()
    [choice] = whole["choices"]
    assert choice["message"]["content"] == content
    found = choice["message"].get("tool_calls", [])
    assert [(call["type"], call["function"]["name"], call["function"]["arguments"]) for call in found] == [
        ("function", *call) for call in calls
    ]
    reason = "tool_calls" if calls else "stop"
    assert choice["finish_reason"] == reason
    told = events(speaker.server, {**BODY, "stream_options": {"include_usage": True}})
    assert joined(told) == (content or "", calls, reason)
    assert told[-1]["usage"] == whole["usage"]
    assert told[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert told[-2]["choices"][0]["delta"] == {}


def test_the_shape_of_streamed_calls(speaker: Speaker) -> None:
    speaker.says(f"{ROME}{ROME}")
    parts = [
        part
        for event in events(speaker.server, BODY)
        for choice in event["choices"]
        for part in choice["delta"].get("tool_calls", [])
    ]
    assert [part["index"] for part in parts] == [0, 0, 1, 1]
    for opening, rest in (parts[:2], parts[2:]):
        assert opening["id"].startswith("call_")
        assert opening == {**opening, "type": "function", "function": {"name": "weather", "arguments": ""}}
        assert rest == {"index": opening["index"], "function": {"arguments": '{"city": "Rome"}'}}


def test_an_answer_that_is_cut_says_so(speaker: Speaker) -> None:
    speaker.says(ROME)
    tokens = len(speaker.model.answer)
    [choice] = speaker.server.post("/v1/chat/completions", {**BODY, "max_tokens": tokens}).json()["choices"]
    assert (len(choice["message"]["tool_calls"]), choice["finish_reason"]) == (1, "length")
    [choice] = speaker.server.post("/v1/chat/completions", {**BODY, "max_tokens": tokens - 1}).json()["choices"]
    assert "tool_calls" not in choice["message"]
    assert choice["message"]["content"].startswith("<tool_call>")


def test_without_parallel_calls_there_is_one(speaker: Speaker) -> None:
    speaker.says(f"{ROME}{ROME}")
    body = {**BODY, "parallel_tool_calls": False}
    [choice] = speaker.server.post("/v1/chat/completions", body).json()["choices"]
    assert len(choice["message"]["tool_calls"]) == 1
    assert len(joined(events(speaker.server, body))[1]) == 1


def test_a_choice_of_none_shows_nothing_and_reads_nothing(speaker: Speaker) -> None:
    speaker.says(ROME)
    [choice] = speaker.server.post("/v1/chat/completions", {**BODY, "tool_choice": "none"}).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (ROME, "stop")
    assert "weather" not in speaker.prompt


def test_the_template_is_shown_tools_calls_and_results(speaker: Speaker) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a light"},
    ]
    speaker.says("a word")
    body = {**BODY, "messages": messages, "max_tokens": 20}
    assert speaker.server.post("/v1/chat/completions", body).status_code == 200
    tools = "".join(f"{json.dumps(tool)}\n" for tool in BODY["tools"])
    history = f"<|user|>in the light<|assistant|>{ROME}<|endoftext|><|tool|>a light<|assistant|>"
    assert speaker.prompt == f"<|system|>{tools}{history}"
    found = speaker.server.post("/tokenize", {"messages": messages, "tools": BODY["tools"]}).json()
    assert found["tokens"] == speaker.prompts[-1]


def test_bare_calls_are_read_as_well(loaded: LoadedModel) -> None:
    with speaking(loaded, BARE) as speaker:
        speaker.says('{"name": "weather", "parameters": {"city": "Rome"}}')
        whole = speaker.server.post("/v1/chat/completions", BODY).json()["choices"][0]
        assert whole["message"]["tool_calls"][0]["function"]["name"] == "weather"
        assert joined(events(speaker.server, BODY)) == ("", [("weather", '{"city": "Rome"}')], "tool_calls")
        speaker.says('{"city": "Rome"}')
        assert joined(events(speaker.server, BODY)) == ('{"city": "Rome"}', [], "stop")


def test_calls_through_the_client(speaker: Speaker) -> None:
    speaker.says(f"a word. {ROME}")
    client = speaker.server.client()
    given: Any = {"model": NAME, "messages": ASKED, "tools": [WEATHER], "max_tokens": 200}
    [choice] = client.chat.completions.create(**given).choices
    assert choice.finish_reason == "tool_calls"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Rome"}
    with client.chat.completions.stream(**given) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "a word."
    assert final.choices[0].message.tool_calls[0].function.name == "weather"
