"""The narrow task: reproducible, disjoint splits, strict scoring."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path

import pytest

from demo import task, values
from demo.task import FIELDS, TEMPLATES, Item, Split, exact_match, field_matches, items, write_jsonl
from difflm.data import check_disjoint, read_documents

SPLITS: tuple[Split, ...] = ("train", "fresh", "unseen")


def record_key(item: Item) -> str:
    return json.dumps(item.record)


def words(item: Item) -> set[str]:
    return set(re.findall(r"[a-z]+", item.prompt.lower()))


@pytest.mark.parametrize("split", SPLITS)
def test_items_are_a_function_of_split_count_and_seed(split: Split) -> None:
    first = items(split, 50, 7)
    assert first == items(split, 50, 7)
    assert first[:20] == items(split, 20, 7)
    assert first != items(split, 50, 8)
    assert len({record_key(item) for item in first}) == 50
    assert items(split, 0, 7) == []


def test_first_item_is_pinned() -> None:
    """Another version of Python or of the lists must not silently change the data behind published figures."""
    item = items("train", 1, 0)[0]
    assert item.prompt + item.completion == (
        "Text: In January, a tree driver named Imran Blackelli, 72, opened a shop in Paris.\nJSON:"
        ' {"name": "Imran Blackelli", "age": 72, "job": "tree driver", "city": "Paris"}'
    )


@pytest.mark.parametrize("split", SPLITS)
def test_the_answer_is_in_the_sentence(split: Split) -> None:
    for item in items(split, 200, 1):
        assert tuple(item.record) == FIELDS
        assert item.prompt.endswith(".\nJSON:")
        assert item.prompt.count("\n") == 1
        assert item.prompt.isascii()
        for value in item.record.values():
            assert len(re.findall(rf"\b{re.escape(str(value))}\b", item.prompt)) == 1
        assert json.loads(item.completion) == item.record
        assert item.completion.startswith(' {"name": "')
        assert "{" not in item.prompt
        assert not re.search(r"\ba [aeio]|\ban [^aeio]", item.prompt)


def test_splits_are_disjoint() -> None:
    train = items("train", 3000, 0) + items("train", 500, 1)
    fresh = items("fresh", 500, 0)
    unseen = items("unseen", 500, 0)
    trained = {record_key(item) for item in train}
    assert not trained & {record_key(item) for item in fresh + unseen}
    # No value of an unseen item stands anywhere in a training sentence, not even as a distractor.
    seen_words = set().union(*(words(item) for item in train + fresh))
    for item in unseen:
        first, last = str(item.record["name"]).split()
        domain = str(item.record["job"]).split()[0]
        for value in (first, last, domain, str(item.record["city"])):
            assert value.lower() not in seen_words


def test_records_of_few_values_are_never_in_two_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few values the same record would come up again and again: train and fresh still share none."""
    monkeypatch.setattr(task, "BUILT_SHARE", 0.0)
    for name, pool in (("FIRST_NAMES", 8), ("LAST_NAMES", 8), ("CITIES", 8), ("DOMAINS", 8), ("ROLES", 1)):
        monkeypatch.setattr(values, name, vars(values)[name][:pool])
    train = {record_key(item) for item in items("train", 4000, 0)}
    fresh = {record_key(item) for item in items("fresh", 4000, 1)}
    assert len(train) == len(fresh) == 4000
    assert not train & fresh


def test_values_come_in_thousands() -> None:
    train = items("train", 3000, 0)
    names = [str(item.record["name"]).split() for item in train]
    assert len({first for first, _ in names}) > 1000
    assert len({last for _, last in names}) > 1200
    assert len({item.record["city"] for item in train}) > 1000
    assert len({item.record["job"] for item in train}) > 2000
    assert {item.record["age"] for item in train} == set(range(18, 90))


def test_templates() -> None:
    assert len(set(TEMPLATES)) == len(TEMPLATES) >= 12
    orders = set()
    distracting = 0
    for template in TEMPLATES:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name]
        own = ["job" if name == "a_job" else name for name in fields if name in (*FIELDS, "a_job")]
        assert sorted(own) == sorted(FIELDS)
        orders.add(tuple(own))
        distracting += len(fields) > len(own)
    assert len(orders) >= 8
    assert distracting >= 6
    assert len({re.sub(r"\{\w+\}", "", template) for template in TEMPLATES}) == len(TEMPLATES)


def test_words_of_the_templates_are_no_values() -> None:
    """A held-out job or name that a template happens to contain would be seen in training."""
    fixed = {word.lower() for template in TEMPLATES for word in re.findall(r"\w+", re.sub(r"\{\w+\}", "", template))}
    fixed |= {word.lower() for word in (*task.WEEKDAYS, *task.MONTHS)}
    pools = (values.DOMAINS, values.FIRST_NAMES, values.LAST_NAMES, values.CITIES)
    assert not fixed & {word.lower() for pool in pools for word in pool}


def test_lists_have_no_doubles() -> None:
    lists = {name: pool for name, pool in vars(values).items() if name.isupper()}
    assert len(lists) == 11
    for name, pool in lists.items():
        assert len(set(pool)) == len(pool), name
        assert all(word.isascii() and word.isalpha() for word in pool), name


ITEM = Item(
    prompt="",
    completion="",
    record={"name": "Maria Keller", "age": 34, "job": "bridge painter", "city": "Lyon"},
)
RIGHT = '{"name": "Maria Keller", "age": 34, "job": "bridge painter", "city": "Lyon"}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RIGHT, True),
        (f" {RIGHT}\n", True),
        (RIGHT.replace(", ", ","), True),
        ('{"age": 34, "name": "Maria Keller", "job": "bridge painter", "city": "Lyon"}', True),
        (RIGHT.replace("34", '"34"'), False),
        (RIGHT.replace("34", "34.0"), False),
        (RIGHT.replace("34", "35"), False),
        (RIGHT.replace("Lyon", "lyon"), False),
        (RIGHT.replace("Lyon", "Lyon "), False),
        (RIGHT.replace(', "city": "Lyon"', ""), False),
        (RIGHT.replace("}", ', "more": 1}'), False),
        (RIGHT.replace("}", ', "age": 34}'), False),
        (RIGHT.replace('"Lyon"', '["Lyon"]'), False),
        (RIGHT + RIGHT, False),
        (RIGHT[:-1], False),
        ("", False),
        ("null", False),
        ("[]", False),
        ("34", False),
        (f"[{RIGHT}]", False),
        ("[" * 100_000, False),
    ],
)
def test_exact_match_is_strict(text: str, expected: bool) -> None:
    assert exact_match(text, ITEM) is expected


def test_own_completions_match() -> None:
    for item in items("unseen", 20, 3):
        assert exact_match(item.completion, item)
        assert all(field_matches(item.completion, item).values())


def test_field_matches_also_in_broken_json() -> None:
    assert field_matches(RIGHT, ITEM) == dict.fromkeys(FIELDS, True)
    broken = '{"name": "Maria Keller", "age": 345, "job": "bridge", "city": "Lyon"} {'
    assert field_matches(broken, ITEM) == {"name": True, "age": False, "job": False, "city": True}
    assert field_matches("", ITEM) == dict.fromkeys(FIELDS, False)


def test_jsonl_is_read_back(tmp_path: Path) -> None:
    drawn = items("train", 30, 0)
    path = tmp_path / "deep" / "task.jsonl"
    write_jsonl(drawn, path)
    documents = list(read_documents(path))
    assert [(d.prompt, d.completion) for d in documents] == [(item.prompt, item.completion) for item in drawn]
    write_jsonl(items("fresh", 30, 0), tmp_path / "fresh.jsonl")
    check_disjoint(documents, read_documents(tmp_path / "fresh.jsonl"))
    assert [file.name for file in path.parent.iterdir()] == ["task.jsonl"]
