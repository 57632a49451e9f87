"""Answers that have to be calls: whole ones, of the functions that may be called, in the template's own form."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from difflm.checkpoints.loading import LoadedModel
from difflm.errors import RequestError
from difflm.serving.forcing import CallForm, calls_constraint, form_of
from difflm.serving.tools import ToolTemplate
from tests.serving.scripted import BARE, MARKED, Speaker, speaking, with_template
from tests.serving.servers import NAME, serving

CHAT = "/v1/chat/completions"
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS, "strict": True}}
NOW: Any = {"type": "function", "function": {"name": "now"}}
BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "in the light"}],
    "tools": [WEATHER, NOW],
    "max_tokens": 180,
    "tool_choice": "required",
}
NAMED = {"type": "function", "function": {"name": "weather"}}
ROME = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 3}}\n</tool_call>'


@pytest.fixture(scope="module")
def speaker(loaded: LoadedModel) -> Iterator[Speaker]:
    with speaking(loaded, MARKED) as found:
        yield found


def marked(loaded: LoadedModel, *, special: bool) -> LoadedModel:
    """Return the model with the marks of calls as tokens, in the place of words that are not used here."""
    own = with_template(loaded, MARKED)
    state = json.loads(own.require_tokenizer().backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    for mark in ("<tool_call>", "</tool_call>"):
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in state["model"]["merges"]]
        last = merges[-1].replace(" ", "")  # of the last merge: nothing is made of it
        token = vocabulary.pop(last)
        state["model"]["merges"] = state["model"]["merges"][:-1]
        added = {"id": token, "content": mark, "special": special, "normalized": False}
        state["added_tokens"].append({**added, "single_word": False, "lstrip": False, "rstrip": False})
        vocabulary[mark] = token
    state["added_tokens"].sort(key=lambda each: each["id"])
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    old = own.require_tokenizer()
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token=old.eos_token)
    made.chat_template = MARKED
    return LoadedModel(own.model, made, copy.copy(own.config), own.path)


def call_of(choice: dict[str, Any]) -> tuple[str, Any]:
    [call] = choice["message"]["tool_calls"]
    return call["function"]["name"], json.loads(call["function"]["arguments"])


def valid(choice: dict[str, Any]) -> None:
    for call in choice["message"]["tool_calls"]:
        arguments = json.loads(call["function"]["arguments"])
        schema = PARAMETERS if call["function"]["name"] == "weather" else {"maxProperties": 0}
        jsonschema.validate(arguments, schema)
    assert choice["message"]["content"] is None


# Forms.


def test_the_form_is_the_templates(loaded: LoadedModel) -> None:
    form = ToolTemplate(with_template(loaded, MARKED)).form()
    assert form == CallForm(
        before=('<tool_call>\n{"name": "probe_function", "arguments": ',),
        after=("}\n</tool_call>",),
        name="probe_function",
        between="\n",
    )
    bare = ToolTemplate(with_template(loaded, BARE)).form()
    assert (bare.before, bare.after, bare.between) == (('{"name": "probe_function", "parameters": ',), ("}",), "; ")


def test_marks_that_are_tokens_are_found(loaded: LoadedModel) -> None:
    own = marked(loaded, special=True)
    opening, closing = own.require_tokenizer().convert_tokens_to_ids(["<tool_call>", "</tool_call>"])
    for special in (True, False):
        own = marked(loaded, special=special)
        found = ToolTemplate(own)
        assert found.format().opening == ("" if special else "<tool_call>"), "special tokens are no text of an answer"
        form = found.form()
        assert (form.before[0], form.after[-1], form.between) == (opening, closing, None if special else "\n")


def test_a_call_without_the_name_has_no_form() -> None:
    assert form_of([1, 2], lambda token: token == 2, lambda tokens: "{}", name="probe", between=None) is None


FORM = CallForm(before=(7, 'a {"n": "probe", "x": '), after=(', "again": "probe"}', 8), name="probe", between=None)


def test_the_grammar_of_calls() -> None:
    constraint = calls_constraint(FORM, {"add": None, "s": {"properties": {"a": {}}}}, single=False)
    lines = (constraint.grammar or "").splitlines()
    assert lines[:2] == ["start: call", "call: call_0 | call_1"]
    assert lines[2] == r'call_0: <[7]> "a {\"n\": \"add\", \"x\": " arguments_0 ", \"again\": \"add\"}" <[8]>'
    schema = json.loads(lines[3].partition("%json ")[2])
    assert {**schema, "x-guidance": None} == {"type": "object", "additionalProperties": False, "x-guidance": None}
    several = CallForm(before=("<",), after=(">",), name="probe", between="\n")
    assert (calls_constraint(several, {"a": None}, single=False).grammar or "").startswith(r'start: call ("\n" call)*')
    assert (calls_constraint(several, {"a": None}, single=True).grammar or "").startswith("start: call\n")


def test_arguments_that_are_no_object_are_refused() -> None:
    with pytest.raises(RequestError, match="parameters: those of 'a' are no object"):
        calls_constraint(FORM, {"a": {"type": "string"}}, single=True)


def test_parameters_that_cannot_be_enforced_are_refused() -> None:
    with pytest.raises(RequestError, match="parameters: minProperties 2 cannot be enforced"):
        calls_constraint(FORM, {"a": {"minProperties": 2}}, single=True)


def test_what_a_schema_says_of_itself_has_no_effect(loaded: LoadedModel) -> None:
    form = CallForm(before=("<",), after=(">",), name="probe", between=None)
    schema = {"not": {}, "x-guidance": {"lenient": True}}
    with pytest.raises(RequestError, match="not"):
        loaded.grammar(calls_constraint(form, {"a": schema}, single=True))
    matcher = loaded.grammar(calls_constraint(form, {"a": {"additionalProperties": False}}, single=True)).matcher()
    taken = "".join(char for char in f"<{{{' ' * 40}" if all(matcher.take(t) for t in loaded.encode(char)))
    assert taken == f"<{{{' ' * 24}"


# Answers.


def test_a_model_that_would_say_something_else_calls(speaker: Speaker) -> None:
    speaker.says("in the light was a word")
    for choice in ("required", NAMED):
        [found] = speaker.server.post(CHAT, {**BODY, "tool_choice": choice}).json()["choices"]
        valid(found)
        assert found["finish_reason"] == ("tool_calls" if choice == "required" else "stop")
    assert call_of(found)[0] == "weather"
    assert "now" in speaker.prompt, "the template is shown all of them"


def test_what_the_model_says_is_kept_where_it_is_a_call(speaker: Speaker) -> None:
    speaker.says(ROME)
    [choice] = speaker.server.post(CHAT, BODY).json()["choices"]
    assert call_of(choice) == ("weather", {"city": "Rome", "days": 3})
    speaker.says(f"{ROME}\n{ROME}")
    [choice] = speaker.server.post(CHAT, BODY).json()["choices"]
    assert len(choice["message"]["tool_calls"]) == 2
    [choice] = speaker.server.post(CHAT, {**BODY, "parallel_tool_calls": False}).json()["choices"]
    assert call_of(choice) == ("weather", {"city": "Rome", "days": 3})
    assert choice["diffusion"]["end"] == "stop"


@pytest.mark.parametrize("special", [True, False])
def test_marks_that_are_tokens(special: bool, loaded: LoadedModel) -> None:
    own = marked(loaded, special=special)
    with speaking(own, MARKED) as speaker:
        for said in ("in the light", ROME):
            speaker.says(said)
            for choice in ("required", NAMED):
                [found] = speaker.server.post(CHAT, {**BODY, "tool_choice": choice}).json()["choices"]
                valid(found)
        assert call_of(found) == ("weather", {"city": "Rome", "days": 3})


def test_bare_calls(loaded: LoadedModel) -> None:
    with speaking(loaded, BARE) as speaker:
        speaker.says("in the light")
        [found] = speaker.server.post(CHAT, BODY).json()["choices"]
        valid(found)
        two = '{"name": "now", "parameters": {}}; {"name": "weather", "parameters": {"city": "Oslo", "days": 1}}'
        speaker.says(two)
        [found] = speaker.server.post(CHAT, BODY).json()["choices"]
        assert [call["function"]["name"] for call in found["message"]["tool_calls"]] == ["now", "weather"]


def test_streamed_and_drawn_calls_are_whole(loaded: LoadedModel) -> None:
    own = with_template(loaded, MARKED)
    with serving(own, prefix_caching=False) as running:
        for seed in range(4):
            body = {**BODY, "temperature": 1.5, "seed": seed, "max_tokens": 180, "parallel_tool_calls": False}
            [choice] = running.post(CHAT, body).json()["choices"]
            assert choice["finish_reason"] == "tool_calls"
            valid(choice)
            with running.client().chat.completions.stream(**{"model": NAME, **body}) as stream:
                final = stream.get_final_completion().choices[0]
            name, arguments = call_of(choice)
            assert final.finish_reason == "tool_calls"
            [call] = final.message.tool_calls
            assert (call.function.name, json.loads(call.function.arguments)) == (name, arguments)


def test_on_length_a_call_is_not_whole(speaker: Speaker) -> None:
    speaker.says(ROME)
    [choice] = speaker.server.post(CHAT, {**BODY, "max_tokens": 12}).json()["choices"]
    assert choice["finish_reason"] == "length"
    assert "tool_calls" not in choice["message"]
    assert choice["message"]["content"].startswith("<tool_call>")


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"tool_choice": "auto", "regex": "a"}, "regex", "beside tools that may be called only JSON"),
        ({"stop": ["a"]}, "stop", "it cannot be used beside tools"),
        ({"ignore_eos": True}, "ignore_eos", "beside a constraint"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"not": {}}}}]},
            "tools",
            "it cannot be used .*not",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}]},
            "tools",
            "those of 'a' are no object",
        ),
        ({"diffusion": {"policy": "hf21"}}, "diffusion.policy", "it cannot be constrained"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refused(fields: dict[str, Any], param: str, message: str, speaker: Speaker) -> None:
    response = speaker.server.post(CHAT, {**BODY, **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param, error
    assert re.search(message, error["message"]), error


def test_a_response_format_goes_with_tools_that_are_not_called(speaker: Speaker) -> None:
    speaker.says("in the light")
    body = {**BODY, "tool_choice": "none", "guided_json": PARAMETERS}
    [choice] = speaker.server.post(CHAT, body).json()["choices"]
    jsonschema.validate(json.loads(choice["message"]["content"]), PARAMETERS)


FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"enum": ["yes", "no"]}}}


def test_beside_tools_answers_are_calls_or_match(speaker: Speaker) -> None:
    body = {**BODY, "tool_choice": "auto", "response_format": FORMAT}
    for said, expected in ((ROME, "weather"), (f"{ROME}\n{ROME}", "weather"), ('"no"', '"no"'), ("in the light", None)):
        speaker.says(said)
        [choice] = speaker.server.post(CHAT, body).json()["choices"]
        if calls := choice["message"].get("tool_calls"):
            valid(choice)
            assert expected in (calls[0]["function"]["name"], None)
            assert len(calls) == max(said.count("Rome"), 1)
        else:
            assert expected in (choice["message"]["content"], None)
            assert json.loads(choice["message"]["content"]) in ("yes", "no")
    speaker.says('"no"')
    [choice] = speaker.server.post(CHAT, {**body, "tool_choice": "required"}).json()["choices"]
    valid(choice)


def test_what_is_asked_for_instead_of_calls_is_in_the_grammar() -> None:
    lines = (calls_constraint(FORM, {"a": None}, single=False, otherwise='{"type": "null"}').grammar or "").splitlines()
    assert lines[0] == "start: call | content"
    assert json.loads(lines[-1].removeprefix("content: %json "))["type"] == "null"
