"""Records: which fields make a document, which is forced, and how rows of ids are checked."""

from __future__ import annotations

from typing import Any

import pytest

from difflm.data.records import Fields, check_fields, parse_record, table_columns, telling_fields, used_fields
from difflm.errors import DataError


def test_the_text_field_has_the_name_it_is_given() -> None:
    assert (
        parse_record({"content": "x", "instruction": "y"} | {"text": 3}, "f:1", Fields(text="instruction")).text == "y"
    )
    with pytest.raises(DataError, match="f:1: field 'content' is missing, found 'text'"):
        parse_record({"text": "x"}, "f:1", Fields(text="content"))


def test_ids_alone_are_all_learnt() -> None:
    document = parse_record({"input_ids": [5, 6, 7], "id": 1}, "f:1")
    assert (document.token, document.trainable, document.kind) == ([5, 6, 7], None, "token ids")


def test_labels_say_what_is_learnt_and_the_attention_mask_cuts_padding() -> None:
    record = {
        "input_ids": [0, 0, 5, 6, 7, 0],
        "labels": [-100, -100, -100, 6, 7, -100],
        "attention_mask": [0, 0, 1, 1, 1, 0],
    }
    document = parse_record(record, "f:1")
    assert (document.token, document.trainable) == ([5, 6, 7], [False, True, True])
    assert parse_record({"input_ids": [5], "labels": None, "attention_mask": None}, "f:1").trainable is None


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"input_ids": [5, 6], "labels": [6, -100]}, "labels[0] is 6, but input_ids[0] is 5; a label is the id at its"),
        ({"input_ids": [5, 6], "labels": [5]}, "field 'labels' has 1 entries for 2 input_ids"),
        ({"input_ids": [5, 6], "labels": [-100, -100]}, "every label is -100, so nothing would be learnt"),
        ({"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1]}, "not one run of 1 between 0s"),
        ({"input_ids": [5, 6], "attention_mask": [2, 1]}, "not one run of 1 between 0s"),
        ({"input_ids": [5, 6], "attention_mask": [0, 0]}, "holds no token"),
        ({"input_ids": []}, "holds no token"),
        ({"input_ids": "5"}, 'is a string ("5"); it must be a list of whole numbers'),
        ({"input_ids": [5, True]}, "input_ids[1] is a boolean (true)"),
        ({"input_ids": [5, -1]}, "input_ids[1] is a number (-1); it must be a whole number from 0 on"),
        ({"input_ids": [5.0]}, "input_ids[0] is a number (5.0)"),
        ({"input_ids": [5, 2**31]}, "input_ids[1] is a number (2147483648)"),
        (
            {"input_ids": [5], "text": "x"},
            "fields 'input_ids', 'text' together are ambiguous; say what is meant (data.records, --records): text or",
        ),
        ({"labels": [5], "text": "x"}, "fields 'labels', 'text' together are ambiguous"),
        ({"weight": 1, "text": "x"}, "field 'weight' belongs to a format that is not read here; remove it"),
        ({"loss_mask": [1], "text": "x"}, "field 'loss_mask' belongs to a format that is not read here; remove it"),
        (
            {"input_ids": [5], "completion_mask": [1]},
            "field 'completion_mask' belongs to a format that is not read here; write 'labels', with -100 for what",
        ),
        (
            {"system": "s", "prompt": "a", "completion": "b"},
            "field 'system' (a string (\"s\")) is not read beside 'prompt' and 'completion' as they are here; write",
        ),
        ({"system": "s", "messages": []}, "or say with --records or data.records: messages that it means nothing"),
        ({"system": "s", "prompt": "a", "chosen": "b", "rejected": "c"}, "field 'system' "),
        ({"system": "s", "prompt": "a", "chosen": [], "rejected": []}, "field 'system' "),
        ({"system": "s", "chosen": [], "rejected": []}, "field 'system' "),
        ({"history": [["a", "b"]], "prompt": "a", "chosen": "b", "rejected": "c"}, "field 'history' "),
        ({"tools": [{}], "prompt": "a", "completion": "b"}, "field 'tools' "),
        ({"tools": [{}], "instruction": "a", "output": "b"}, "field 'tools' "),
        ({"functions": [{}], "messages": []}, "field 'functions' "),
        (
            {"prompt": "a", "completion": "b", "label": False},
            "field 'label' is a boolean (false), a judgement, and every answer here is learnt; keep the lines whose",
        ),
        ({"prompt": "a", "messages": []}, "fields 'prompt', 'messages' together are ambiguous; say what is meant"),
        ({"messages": [], "conversations": []}, "(data.records, --records): messages or sharegpt"),
        ({"chosen": "a", "rejected": "b", "messages": []}, "(data.records, --records): messages or preference"),
        (
            {"chosen": "a", "prompt": "b"},
            "field 'completion' is missing, found 'chosen', 'prompt'; expected 'prompt' and",
        ),
        ({"chosen": "a"}, "field 'rejected' is missing, found 'chosen'; expected 'chosen' and 'rejected'"),
        ({"instruction": "a"}, "field 'output' is missing, found 'instruction'"),
        ({"message": [], "output": "b"}, "field 'instruction' is missing, found 'message', 'output'"),
        (
            {"txt": "a"},
            "field 'text' is missing, found 'txt' (is 'txt' a misspelling?); expected 'text', or 'prompt' and",
        ),
    ],
)
def test_what_is_wrong_with_a_record_is_said_in_one_line(record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_record(record, "f:7")
    text = str(caught.value)
    assert text.startswith("f:7: ")
    assert message in text
    assert "\n" not in text


def test_only_the_columns_of_the_form_are_used() -> None:
    names = ["id", "labels", "input_ids", "attention_mask", "source"]
    assert used_fields(check_fields(names, "f"), names) == ["labels", "input_ids", "attention_mask"]
    assert used_fields(check_fields(["text", "attention_mask"], "f"), ["text", "attention_mask"]) == ["text"]


def test_parts_of_conversations_are_looked_at_in_tables_too() -> None:
    names = ["prompt", "completion", "system", "label", "id"]
    assert used_fields(check_fields(names, "f"), names) == names[:-1]


def test_what_is_read_empty_or_metadata_is_no_unread_part() -> None:
    talk = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    nothing = {"system": " ", "history": None, "tools": "[]", "functions": [], "label": 1}
    sides = {"chosen": "b", "rejected": "c"}
    for record in (
        {**nothing, "prompt": "a", "completion": "b"},
        {**nothing, "prompt": "a", **sides, "label": True},
        {"system": "s", "tools": [{"name": "f"}], "conversations": talk},
        {"system": "s", "tools": [{"name": "f"}], "conversations": talk[:1], **sides},
        {"system": "s", "history": [["a", "b"]], "instruction": "c", "output": "d"},
        {"system": "s", "history": [["a", "b"]], "instruction": "c", **sides},
        {"text": "a", "system": "s", "label": False},
        {"input_ids": [1], "system": "s", "label": False},
    ):
        assert parse_record(record, "f").where == "f"
    loose = {"prompt": "a", "completion": "b", "system": "linux", "label": False}
    assert parse_record(loose, "f", Fields(records="prompt_completion")).completion == "b"


def test_a_forced_form_reads_its_own_fields_and_ignores_the_rest() -> None:
    record = {
        "prompt": "a",
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "chosen": "c",
        "rejected": "d",
    }
    kinds = [parse_record(record, "f", Fields(records=each)).kind for each in ("messages", "preference")]
    assert kinds == ["messages", "preference pairs"]
    with pytest.raises(DataError, match=r"f: field 'conversations' is missing, found 'prompt', .*; expected 'con"):
        parse_record(record, "f", Fields(records="sharegpt"))
    with pytest.raises(DataError, match="f: field 'weight' belongs to a format that is not read here"):
        parse_record(record | {"weight": 2}, "f", Fields(records="messages"))


def test_the_prompt_of_a_pair_may_be_of_another_form() -> None:
    for extra in ("prompt", "conversations", "instruction"):
        assert check_fields(["chosen", "rejected", extra, "id"], "f").name == "preference"


def test_what_tells_a_format() -> None:
    assert {"messages", "story"} <= telling_fields(Fields(text="story"))
    assert "output" not in telling_fields(Fields())
    assert {"instruction", "output"} in table_columns(Fields())
    assert not any("messages" in columns for columns in table_columns(Fields()))
