"""Preference pairs: where the prompt comes from, and what is no pair."""

from __future__ import annotations

from typing import Any

import pytest

from difflm.data.documents import Document
from difflm.data.records import parse_record
from difflm.errors import DataError

SYSTEM, USER = {"role": "system", "content": "s"}, {"role": "user", "content": "q"}
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}


def sides(record: dict[str, Any]) -> list[Document]:
    pair = parse_record(record, "f:1")
    assert pair.chosen is not None
    assert pair.rejected is not None
    return [pair.chosen, pair.rejected]


def talks(record: dict[str, Any]) -> list[str]:
    """Return each side as text; the answer is learnt alone, and the prompts are the same."""
    found = []
    for side in sides(record):
        assert side.chat is not None
        assert side.chat.learnt == (len(side.chat.messages) - 1,)
        found.append(" ".join(f"{message['role']}:{message['content']}" for message in side.chat.messages))
    return found


def test_texts_are_taken_as_they_are() -> None:
    record = {"prompt": "q", "chosen": "good", "rejected": "bad", "score": 3}
    assert sides(record) == [Document(prompt="q", completion=each, where="f:1") for each in ("good", "bad")]
    assert parse_record(record, "f:1").kind == "preference pairs"


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"prompt": [SYSTEM, USER], "chosen": [GOOD], "rejected": [BAD]}, "system:s user:q"),
        ({"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, "system:s user:q"),
        ({"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "user:q"),
        ({"prompt": "q", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, "system:s user:q"),
        ({"prompt": "q", "chosen": [GOOD], "rejected": [BAD]}, "user:q"),
        ({"prompt": "q", "chosen": GOOD, "rejected": BAD}, "user:q"),
        ({"prompt": [USER], "chosen": "good", "rejected": "bad"}, "user:q"),
        (
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            },
            "user:q",
        ),
        ({"instruction": "i", "input": "x", "system": "s", "chosen": "good", "rejected": "bad"}, "system:s user:i\nx"),
        ({"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, USER, BAD]}, "user:q assistant:good user:q"),
    ],
    ids=str,
)
def test_prompts_are_named_or_shared(record: dict[str, Any], prompt: str) -> None:
    assert talks(record) == [f"{prompt} assistant:good", f"{prompt} assistant:bad"]
    assert parse_record(record, "f").kind == "preference chats"


def test_tools_reach_both_sides() -> None:
    found = sides({"chosen": [USER, GOOD], "rejected": [USER, BAD], "tools": [{"name": "look"}]})
    assert [side.chat.tools for side in found if side.chat] == [({"name": "look"},)] * 2


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "are the same, so nothing is preferred; remove the line"),
        ({"chosen": "a", "rejected": "b"}, "are texts without a 'prompt'; write what both answer into it"),
        (
            {"prompt": "q", "instruction": "i", "chosen": "a", "rejected": "b"},
            "'prompt', 'instruction' name two prompts",
        ),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "field 'chosen' is empty"),
        (
            {"prompt": "q", "chosen": 3, "rejected": "b"},
            "field 'chosen' is a number (3); it must be a text or a list of",
        ),
        ({"chosen": [GOOD], "rejected": [BAD]}, "begin with different messages; give their 'prompt'"),
        (
            {"chosen": [USER, GOOD], "rejected": [USER]},
            "'rejected' holds nothing; it must be one message of the assistant",
        ),
        (
            {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, BAD]},
            "'chosen' holds assistant, user, assistant; it m",
        ),
        (
            {"chosen": [USER, GOOD], "rejected": [USER, USER]},
            "'rejected' holds user; it must be one message of the assi",
        ),
        ({"chosen": [USER, {"role": "bot", "content": "x"}], "rejected": [USER, BAD]}, "chosen[1].role is a string"),
        (
            {"prompt": "q", "chosen": GOOD, "rejected": {**BAD, "weight": 0}},
            "rejected[0] is marked as not learnt, and of a pair both answers are; remove the mark, or the line",
        ),
        (
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "a", "loss_mask": False},
                "rejected": {"from": "gpt", "value": "b"},
            },
            "chosen[0] is marked as not learnt",
        ),
    ],
    ids=str,
)
def test_what_is_no_pair_is_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_record(record, "f:7")
    text = str(caught.value)
    assert text.startswith("f:7: ")
    assert message in text
