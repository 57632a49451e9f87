"""Conversations: what each format means, which messages are learnt, and what is refused with its place."""

from __future__ import annotations

from typing import Any

import pytest

from difflm.data.documents import Chat, Document
from difflm.data.records import parse_record
from difflm.errors import DataError

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def chat(record: dict[str, Any], kind: str) -> Chat:
    document = parse_record(record, "f:1")
    assert document.kind == kind
    assert document.chat is not None
    return document.chat


def said(found: Chat) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in found.messages]


def test_messages_with_parts_tools_and_reasoning_pass_through() -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    calls = [{"type": "function", "function": {"name": "look", "arguments": "{}"}}]
    record = {
        "messages": [
            {"role": "system", "content": ""},
            {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "r"}], "name": None},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "content": "", "tool_call_id": "1"},
            {"role": "assistant", "content": "a", "reasoning_content": "hm"},
            USER,
        ],
        "tools": tools,
        "id": 7,
    }
    found = chat(record, "messages")
    assert said(found) == [
        ("system", ""),
        ("user", "qr"),
        ("assistant", ""),
        ("tool", ""),
        ("assistant", "a"),
        ("user", "q"),
    ]
    assert found.learnt == (2, 4)
    assert list(found.tools) == tools
    assert found.messages[2]["tool_calls"] == calls
    assert found.messages[4]["reasoning_content"] == "hm"
    assert "name" not in found.messages[1]
    assert chat({**record, "tools": '[{"a": 1}]'}, "messages").tools == ({"a": 1},)
    assert chat({**record, "tools": ""}, "messages").tools == ()


@pytest.mark.parametrize("flag", ["trainable", "weight", "loss_mask"])
def test_marks_say_which_answers_are_learnt(flag: str) -> None:
    talk = [USER, {**ANSWER, flag: 0}, {**USER, flag: False}, {**ANSWER, flag: 1}, USER, ANSWER]
    found = chat({"messages": talk}, "messages")
    assert found.learnt == (3, 5)
    assert all(flag not in message for message in found.messages)
    first = chat({"messages": [{**ANSWER, flag: 0}, USER, ANSWER]}, "messages")
    assert first.learnt == (2,)


def test_sharegpt_names_its_speakers() -> None:
    record = {
        "system": "s",
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "look", "arguments": {"at": 1}}'},
            {"from": "observation", "value": "42"},
            {"from": "gpt", "value": "a", "weight": 0},
            {"role": "user", "content": "r"},
            {"from": "gpt", "value": "b"},
        ],
        "tools": [{"name": "look"}],
    }
    found = chat(record, "ShareGPT")
    assert said(found) == [
        *(("system", "s"), ("user", "q"), ("assistant", ""), ("tool", "42"), ("assistant", "a"), ("user", "r")),
        ("assistant", "b"),
    ]
    assert found.messages[2]["tool_calls"] == [
        {"type": "function", "function": {"name": "look", "arguments": {"at": 1}}}
    ]
    assert found.learnt == (2, 6)
    assert found.tools == ({"name": "look"},)
    assert said(chat({**record, "system": " "}, "ShareGPT"))[0] == ("user", "q")


def test_alpaca_in_its_three_layouts() -> None:
    assert said(chat({"instruction": "i", "output": "o"}, "Alpaca")) == [("user", "i"), ("assistant", "o")]
    with_input = {"instruction": "i", "input": "x", "output": "o"}
    assert said(chat(with_input, "Alpaca")) == [("user", "i\nx"), ("assistant", "o")]
    assert said(chat({**with_input, "input": " "}, "Alpaca"))[0] == ("user", "i")
    whole = chat({**with_input, "system": "s", "history": [["q", "a"], ["r", "b"]]}, "Alpaca")
    assert said(whole) == [
        *(("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")),
        *(("user", "i\nx"), ("assistant", "o")),
    ]
    assert whole.learnt == (2, 4, 6)


def test_prompt_and_completion_as_messages_learn_the_completion_alone() -> None:
    record = {"prompt": [USER, ANSWER, USER], "completion": [{"role": "assistant", "content": "b"}]}
    found = chat(record, "prompt + completion in messages")
    assert found.learnt == (3,)
    assert parse_record({"prompt": "", "completion": "b"}, "f:1") == Document(prompt="", completion="b", where="f:1")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": "q"}, "field 'messages' is a string (\"q\"); it must be a list of messages"),
        ({"messages": []}, "field 'messages' holds no message; remove the line or fill it in"),
        ({"messages": ["q"]}, "messages[0] is a string (\"q\"); a message is an object with 'role' and 'content'"),
        (
            {"messages": [{"role": "bot", "content": "q"}]},
            'messages[0].role is a string ("bot"); it must be one of system',
        ),
        (
            {"messages": [{"content": "q"}]},
            "messages[0].role is null (null); it must be one of system, developer, user",
        ),
        ({"messages": [USER, {**ANSWER, "content": " "}]}, "messages[1] (assistant) says nothing; remove the line"),
        ({"messages": [{"role": "user"}, ANSWER]}, "messages[0] (user) says nothing"),
        (
            {"messages": [{**USER, "content": 3}, ANSWER]},
            "messages[0].content is a number (3); it must be a string or a",
        ),
        (
            {"messages": [{**USER, "content": [{"type": "image_url"}]}, ANSWER]},
            'messages[0].content[0] is an object ({"type": "image_url"}); it must be text',
        ),
        ({"messages": [{**USER, "content": "\ud800"}]}, "messages[0].content holds half of a surrogate pair"),
        (
            {"messages": [USER, {**ANSWER, "weight": 0.5}]},
            "messages[1].weight is a number (0.5); a message is learnt (1)",
        ),
        (
            {"messages": [USER, {**ANSWER, "weight": 0, "trainable": True}]},
            "messages[1] is learnt and not learnt (trainable, weight); leave one out",
        ),
        (
            {"messages": [{**USER, "weight": 1}, ANSWER]},
            "messages[0] is the user's and marked as learnt; only the assist",
        ),
        ({"messages": [USER]}, "no message of the assistant is learnt, so nothing would be; remove the line"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "no message of the assistant is learnt"),
        (
            {"messages": [ANSWER, USER, ANSWER]},
            "messages[0] is the assistant's and answers nothing; begin with another's",
        ),
        ({"messages": [USER, ANSWER], "tools": {}}, "field 'tools' is an object ({}); it must be a list of functions"),
        ({"messages": [USER, ANSWER], "tools": "{"}, "field 'tools' is a string (\"{\"); it must be JSON"),
        (
            {"messages": [USER, ANSWER], "tools": [None]},
            "tools[0] is null (null); a function is described by an object",
        ),
        (
            {"messages": [USER, {**ANSWER, "function_call": {"name": "f"}}]},
            'messages[1].function_call is an object ({"name": "f"}), an older form; write it as \'tool_calls\'',
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": "[]"}]},
            'messages[1].tool_calls is a string ("[]"); it must be a list of calls',
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": "f"}]}]},
            "messages[1].tool_calls[0] is an object ({\"function\": \"f\"}); a call has a 'function' with 'name' and",
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": ["f"]}]},
            'messages[1].tool_calls[0] is a string ("f")',
        ),
        (
            {"conversations": [{"from": "bard", "value": "q"}]},
            'conversations[0].from is a string ("bard"); it must be one',
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "look"}]},
            'conversations[1].value is a string ("look"); it must be JSON',
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "[3]"}]},
            "conversations[1].value holds a number (3); a call has 'name' and 'arguments'",
        ),
        ({"conversations": "q"}, "field 'conversations' is a string"),
        ({"instruction": "", "output": "o"}, "field 'instruction' is empty; remove the line or fill it in"),
        ({"instruction": "i", "output": 3}, "field 'output' is a number (3); it must be a string"),
        (
            {"instruction": "i", "output": "o", "history": "h"},
            "field 'history' is a string (\"h\"); it must be a list of",
        ),
        (
            {"instruction": "i", "output": "o", "history": [["q"]]},
            'history[0] is a list (["q"]); it must be [question, an',
        ),
        (
            {"prompt": [USER], "completion": "a"},
            "field 'completion' is a string (\"a\") beside a list of messages in 'pro",
        ),
        (
            {"prompt": "q", "completion": [ANSWER]},
            "field 'prompt' is a string (\"q\") beside a list of messages in 'comp",
        ),
        ({"prompt": "q", "completion": " "}, "field 'completion' is empty"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_with_its_place(record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_record(record, "f:7")
    text = str(caught.value)
    assert text.startswith("f:7: ")
    assert message in text
    assert "\n" not in text
