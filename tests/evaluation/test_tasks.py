from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from difflm.errors import ConfigError, DataError
from difflm.evaluation.tasks import Item, LocalFile, ReasoningGym, task_of


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_a_file_gives_a_seeded_choice_in_its_order(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number}?", "answer": f"{number}", "level": number} for number in range(20)]
    task = LocalFile(write(tmp_path / "items.jsonl", list(rows)))
    everything = task.items(None, 0)
    assert [item.prompt for item in everything] == [row["prompt"] for row in rows]
    assert everything[3] == Item(prompt="3?", reference="3", metadata={"level": 3})
    assert task.items(20, 5) == task.items(99, 6) == everything
    some = task.items(8, 1)
    assert [each for each in everything if each in some] == some
    assert len(some) == 8
    assert some == task.items(8, 1)
    assert some != task.items(8, 2)
    assert task_of(task.name) == task


def test_space_around_an_answer_does_not_count_and_completions_are_answers(tmp_path: Path) -> None:
    task = LocalFile(write(tmp_path / "items.jsonl", [{"prompt": "a", "completion": " b\n"}]))
    (item,) = task.items(None, 0)
    assert [task.score(item, text) for text in ("b", "  b ", "b c", "B", "")] == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: no JSON"),
        ("[]", 'line 2: an item needs the texts "prompt" and "answer"'),
        ('{"prompt": "a"}', "line 2: an item needs"),
        ('{"prompt": "a", "answer": 3}', "line 2: an item needs"),
        ('{"prompt": null, "answer": "3"}', "line 2: an item needs"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(f'{{"prompt": "a", "answer": "b"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(DataError, match=message):
        LocalFile(path).items(None, 0)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it has no items"):
        LocalFile(write(tmp_path / "items.jsonl", [])).items(None, 0)


def test_what_is_no_task_is_said() -> None:
    with pytest.raises(ConfigError, match=r"'mmlu' is none; give FILE\.jsonl or reasoning-gym:DATASET"):
        task_of("mmlu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reasoning-gym:nope", "there is no dataset 'nope'"),
        ("reasoning-gym:chain_sum:terms", "'terms' is no setting"),
        ("reasoning-gym:chain_sum:terms=3", "chain_sum does not take these settings: .*terms"),
        ("reasoning-gym:chain_sum:min_terms=-1", "chain_sum does not take these settings: min_terms must be positive"),
    ],
)
def test_what_a_dataset_does_not_take_is_said(text: str, message: str) -> None:
    pytest.importorskip("reasoning_gym", reason="in the extra [eval]")
    with pytest.raises(ConfigError, match=message):
        task_of(text)


def test_generated_items_are_scored_by_their_dataset() -> None:
    pytest.importorskip("reasoning_gym", reason="in the extra [eval]")
    task = task_of("reasoning-gym:chain_sum:min_terms=2,max_terms=3")
    assert task == ReasoningGym("chain_sum", (("min_terms", 2), ("max_terms", 3)))
    assert task_of(task.name) == task
    items = task.items(5, 7)
    assert items == task.items(5, 7)
    assert items != task.items(5, 8)
    assert items[:3] == task.items(3, 7)
    for item in items:
        right = f"{float(item.reference):.2f}"  # its scorer compares numbers, not texts
        assert task.score(item, right) == 1
        assert task.score(item, f"so <answer>1e9</answer>\n<answer> {item.reference} </answer>.") == 1
        assert task.score(item, str(int(item.reference) + 1)) < 1
        assert task.score(item, "") < 1


def test_a_scorer_may_give_part_of_the_score() -> None:
    pytest.importorskip("reasoning_gym", reason="in the extra [eval]")
    task = ReasoningGym("countdown")
    item = task.items(1, 0)[0]
    assert 0 < task.score(item, "1") < task.score(item, item.reference) == 1


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match=r"pip install 'difflm\[eval\]'"):
        ReasoningGym("chain_sum")
