"""langchain-openai as its users have it: both of its classes, whole and streamed, with tools."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from difflm.checkpoints.loading import LoadedModel
from difflm.decode.engine import generate
from difflm.decode.request import SamplingParams
from tests.serving.scripted import MARKED, Speaker, speaking
from tests.serving.servers import NAME, Running

langchain: Any = pytest.importorskip("langchain_openai", reason="langchain-openai is in the extra [dev]; CI has it")
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
