"""langchain-openai as its users have it: both of its classes, whole and streamed, with tools."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from difflm.checkpoints.loading import LoadedModel
from difflm.decode.engine import generate
from difflm.decode.request import SamplingParams
from tests.serving.scripted import MARKED, Speaker, speaking
from tests.serving.servers import NAME, Running

langchain: Any = pytest.importorskip("langchain_openai", reason="langchain-openai is in the extra [dev]; CI has it")
pydantic: Any = pytest.importorskip("pydantic")
messages: Any = pytest.importorskip("langchain_core.messages")

ROME = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def weather(city: str) -> str:
    """Tell the weather."""
    return f"light in {city}"


def given(server: Running, **more: Any) -> dict[str, Any]:
    return {"base_url": f"{server.address}/v1", "api_key": "none", "model": NAME, "max_retries": 0, **more}


@pytest.fixture(scope="module")
def speaker(loaded: LoadedModel) -> Iterator[Speaker]:
    with speaking(loaded, MARKED) as found:
        yield found


def test_a_conversation(server: Running, loaded: LoadedModel) -> None:
    model = langchain.ChatOpenAI(**given(server, max_tokens=12, temperature=0, stream_usage=True))
    asked = [("system", "a word"), ("user", "in the beginning")]
    prompt = loaded.encode_chat([{"role": role, "content": text} for role, text in asked])
    [expected] = generate(loaded, [prompt], SamplingParams(max_new_tokens=12))
    answer = model.invoke(asked)
    assert answer.content == expected.text
    assert answer.usage_metadata["output_tokens"] == 12
    assert answer.response_metadata["finish_reason"] == "length"
    parts = list(model.stream(asked))
    assert "".join(part.content for part in parts) == expected.text
    assert sum(part.usage_metadata["output_tokens"] for part in parts if part.usage_metadata) == 12


def test_a_prompt(server: Running, loaded: LoadedModel) -> None:
    """Report 55: this class asks /v1/completions, with nulls and a list of prompts."""
    model = langchain.OpenAI(**given(server, max_tokens=12, temperature=0))
    [expected] = generate(loaded, ["in the"], SamplingParams(max_new_tokens=12))
    assert model.invoke("in the") == expected.text
    assert "".join(model.stream("in the")) == expected.text
    assert model.batch(["in the", "in the"]) == [expected.text] * 2


def test_a_tool_is_called_and_its_result_is_read(speaker: Speaker) -> None:
    model = langchain.ChatOpenAI(**given(speaker.server, max_tokens=100)).bind_tools([weather])
    speaker.says(f"a word. {ROME}")
    asked = [messages.HumanMessage("in Rome")]
    answer = model.invoke(asked)
    [call] = answer.tool_calls
    assert (answer.content, call["name"], call["args"]) == ("a word.", "weather", {"city": "Rome"})
    whole = None
    for part in model.stream(asked):
        whole = part if whole is None else whole + part
    assert whole is not None
    assert [(each["name"], each["args"]) for each in whole.tool_calls] == [("weather", {"city": "Rome"})]
    assert whole.content == "a word."
    speaker.says("a light")
    result = messages.ToolMessage(weather(**call["args"]), tool_call_id=call["id"])
    assert model.invoke([*asked, answer, result]).content == "a light"
    assert f"{json.dumps({'city': 'Rome'})}}}\n</tool_call><|endoftext|><|tool|>light in Rome" in speaker.prompt


def test_errors_are_the_packages_own(server: Running) -> None:
    openai = pytest.importorskip("openai")
    with pytest.raises(openai.BadRequestError, match="context"):
        langchain.ChatOpenAI(**given(server)).invoke("word " * 2000)
    with pytest.raises(openai.NotFoundError, match="not served here"):
        langchain.ChatOpenAI(**given(server, model="gpt-4")).invoke("word")


class Person(pydantic.BaseModel):
    name: Literal["Ada"]
    light: bool


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(method: str, speaker: Speaker) -> None:
    model = langchain.ChatOpenAI(**given(speaker.server, max_tokens=120)).with_structured_output(Person, method=method)
    if method == "json_schema":
        speaker.says("in the light")
        assert isinstance(model.invoke("who"), Person)
    written = {"name": "Ada", "light": True}
    call = f'<tool_call>\n{{"name": "Person", "arguments": {json.dumps(written)}}}\n</tool_call>'
    speaker.says(json.dumps(written) if method == "json_schema" else call)
    assert model.invoke("who") == Person(**written)
    assert list(model.stream("who"))[-1] == Person(**written)


def test_structured_output_as_any_object(speaker: Speaker) -> None:
    model = langchain.ChatOpenAI(**given(speaker.server, max_tokens=100))
    speaker.says('{"word": "light"}')
    chain = model.with_structured_output({"title": "any", "type": "object"}, method="json_mode")
    assert chain.invoke("a word as JSON") == {"word": "light"}


def test_a_tool_that_has_to_be_called(speaker: Speaker) -> None:
    for choice in ("any", "weather"):
        model = langchain.ChatOpenAI(**given(speaker.server, max_tokens=100)).bind_tools([weather], tool_choice=choice)
        speaker.says(ROME)
        answer = model.invoke([messages.HumanMessage("in Rome")])
        assert answer.content == ""
        assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("weather", {"city": "Rome"})]


def test_the_client_parses_a_class(speaker: Speaker) -> None:
    client = speaker.server.client()
    asked: Any = {"model": NAME, "messages": [{"role": "user", "content": "who"}], "max_tokens": 120}
    speaker.says("in the light")
    [choice] = client.chat.completions.parse(**asked, response_format=Person).choices
    assert isinstance(choice.message.parsed, Person)
    assert choice.finish_reason == "stop"
    with client.chat.completions.stream(**asked, response_format=Person) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == choice.message.parsed
    openai = pytest.importorskip("openai")
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**{**asked, "max_tokens": 3}, response_format=Person)
    with pytest.raises(openai.BadRequestError, match="cannot be used beside"):
        client.chat.completions.parse(**asked, response_format=Person, stop=["a"])
    tool = openai.pydantic_function_tool(Person)
    [choice] = client.chat.completions.parse(**asked, tools=[tool], tool_choice="required").choices
    assert isinstance(choice.message.tool_calls[0].function.parsed_arguments, Person)
