"""Prompts of every form become the ids that the model is trained with, or are refused by the place that is wrong."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from difflm.checkpoints.loading import LoadedModel
from difflm.data.conversations import messages_of
from difflm.serving.errors import ApiError
from difflm.serving.limits import Limits
from difflm.serving.prompts import conversation_ids, encoded, prompts_of
from difflm.serving.schema import ChatRequest, CompletionRequest
from difflm.serving.tools import ToolTemplate, shown
from tests.serving.scripted import MARKED, with_template

CALL: Any = {"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TALK: Any = {"role": "user", "content": "in"}
WRONG: Any = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "[1]"}}


def prompts(loaded: LoadedModel, prompt: Any, **fields: Any) -> list[list[int]]:
    asked = CompletionRequest.model_validate_json(json.dumps({"prompt": prompt, **fields}))
    return prompts_of(loaded, asked, Limits(answers=4))


def conversation(loaded: LoadedModel, *messages: Any, most: int = 9) -> list[int]:
    asked = ChatRequest.model_validate_json(json.dumps({"messages": messages}))
    return conversation_ids(loaded, asked.messages, Limits(messages=most))


def test_texts_and_ids(loaded: LoadedModel) -> None:
    ids = loaded.encode("in the")
    assert prompts(loaded, "in the") == prompts(loaded, ["in the"]) == prompts(loaded, ids) == [ids]
    assert prompts(loaded, [ids, [1]]) == [ids, [1]]
    assert prompts(loaded, ["in the", "word"]) == [ids, loaded.encode("word")]


@pytest.mark.parametrize("prompt", [[], None])
def test_no_prompt(prompt: Any, loaded: LoadedModel) -> None:
    with pytest.raises(ApiError) as caught:
        prompts(loaded, prompt)
    assert caught.value.param == "prompt"


def test_too_many(loaded: LoadedModel) -> None:
    with pytest.raises(ApiError) as caught:
        prompts(loaded, ["a", "b", "c"], n=2)
    assert caught.value.message == "prompt: 3 prompts with n 2; give at most 4 altogether"


def test_half_a_character(loaded: LoadedModel) -> None:
    with pytest.raises(ApiError) as caught:
        encoded(loaded, "\ud83d", where="prompt")
    assert caught.value.param == "prompt"


def test_content_as_text_and_as_parts(loaded: LoadedModel) -> None:
    whole = conversation(loaded, {"role": "system", "content": "a word"}, {"role": "user", "content": "in the light"})
    parts = [{"type": "text", "text": "in "}, {"type": "text", "text": "the light", "more": 1}]
    assert whole == conversation(loaded, {"role": "developer", "content": "a word"}, {"role": "user", "content": parts})
    messages = [{"role": "system", "content": "a word"}, {"role": "user", "content": "in the light"}]
    assert whole == loaded.encode_chat(messages)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user", "content": "a", "tool_calls": [CALL]}, "messages[0].tool_calls"),
        ({"role": "assistant", "content": "a", "tool_calls": [CALL]}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": [WRONG]}, "messages[0].tool_calls[0].function.arguments"),
        ({"role": "tool", "content": "a"}, "messages[0].tool_call_id"),
        ({"role": "tool", "tool_call_id": "x"}, "messages[0].content"),
        ({"role": "function", "name": "f", "content": "a"}, "messages[0].role"),
        ({"role": "assistant", "content": "a", "function_call": {"name": "f"}}, "messages[0].function_call"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(message: Any, param: str, loaded: LoadedModel) -> None:
    with pytest.raises(ApiError) as caught:
        conversation(loaded, message)
    assert caught.value.param == param
    assert caught.value.message.startswith(param)


def test_too_many_messages_and_no_template(loaded: LoadedModel) -> None:
    message = {"role": "user", "content": "a"}
    with pytest.raises(ApiError) as caught:
        conversation(loaded, *[message] * 10)
    assert caught.value.message == "messages: 10 messages; give at most 9"
    bare = copy.copy(loaded.require_tokenizer())
    bare.chat_template = None
    with pytest.raises(ApiError) as caught:
        conversation(LoadedModel(loaded.model, bare, loaded.config, loaded.path), message)
    assert str(loaded.path) not in caught.value.message
    assert "no chat template" in caught.value.message


def test_functions_are_shown_as_in_training(loaded: LoadedModel) -> None:
    own = with_template(loaded, MARKED)
    function = {"parameters": {"type": "object", "properties": {}}, "more": 1, "name": "f", "strict": None}
    tools: Any = [{"function": function, "type": "function"}]
    asked = ChatRequest.model_validate_json(json.dumps({"messages": [TALK], "tools": tools}))
    offered = shown(asked.tools or (), ToolTemplate(own)).tools
    found = conversation_ids(own, asked.messages, Limits(), tools=offered)
    assert found == own.encode_chat([TALK], tools=tools) == own.encode_chat([TALK], tools=[function])


def test_calls_and_results_are_what_training_reads(loaded: LoadedModel) -> None:
    own = with_template(loaded, MARKED)
    result = {"role": "tool", "tool_call_id": "x", "content": [{"type": "text", "text": "a light"}]}
    asked: list[Any] = [{"role": "user", "content": "in"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    found = conversation(own, *asked, result)
    messages, _ = messages_of([*asked, result], "here", "messages")
    assert found == own.encode_chat(messages)
    assert '"arguments": {"a": 1}' in own.decode(found)
    with pytest.raises(ApiError) as caught:
        conversation(loaded, *asked, result)
    assert caught.value.message == "messages[1].tool_calls: the model's chat template does not read them"


def test_a_template_that_needs_the_calls_reads_them(loaded: LoadedModel) -> None:
    """As Mistral's: without the calls two turns of one side would follow each other, which it refuses."""
    strict = "{% if not messages[1].tool_calls %}{{ raise_exception('roles must alternate') }}{% endif %}" + MARKED
    result = {"role": "tool", "tool_call_id": "x", "content": "a light"}
    asked: list[Any] = [TALK, {"role": "assistant", "content": None, "tool_calls": [CALL]}, result]
    assert conversation(with_template(loaded, strict), *asked) == conversation(with_template(loaded, MARKED), *asked)


def test_names_and_reasoning_reach_the_template_as_in_training(loaded: LoadedModel) -> None:
    own = with_template(
        loaded, "{% for m in messages %}{{ m.name }} {{ m.reasoning_content }} {{ m.content }}{% endfor %}"
    )
    asked = [{**TALK, "name": "word"}, {"role": "assistant", "content": "a", "reasoning_content": "light"}]
    assert conversation(own, *asked) == own.encode_chat(asked)
    assert own.decode(conversation(own, *asked)) == "word  in light a"
    assert conversation(own, {**TALK, "name": 3}) == own.encode_chat([TALK])
