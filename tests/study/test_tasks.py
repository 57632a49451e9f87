"""Parts of a task share no prompt, and only a full score is right."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

from difflm.data.sources import read_documents
from difflm.errors import ConfigError
from difflm.evaluation.tasks import Item
from study.tasks import CUE, Drawn, StudyTask, study_task, write_items


class Numbers:
    """A dataset as reasoning-gym makes them: item i of seed s is that of seed s + i, and some are the same."""

    name = "numbers"

    def __init__(self, different: int = 10**6) -> None:
        self.different = different

    def items(self, n: int | None, seed: int) -> list[Item]:
        numbers = [random.Random(seed + number).randrange(self.different) for number in range(n or 500)]
        return [Item(prompt=f"{number}?\n", reference="b" if number % 5 else "bb") for number in numbers]

    def score(self, item: Item, text: str) -> float:
        return 1.0 if text == "b" else 0.5 * (text == item.reference)


def test_parts_share_no_prompt_and_a_larger_part_begins_with_a_smaller_one() -> None:
    task = StudyTask("numbers", Numbers(3000), 8)
    evaluation = task.items(300, 1)
    assert task.items(100, 1) == evaluation[:100]
    prompts = {item.prompt for item in evaluation}
    assert len(prompts) == 300
    learnt = list(itertools.islice(task.stream(2, prompts), 1000))
    assert len({item.prompt for item in learnt} - prompts) == 1000
    assert all(item.prompt.endswith(f"?{CUE}") for item in learnt)


def test_a_dataset_that_has_no_more_items_is_refused() -> None:
    task = StudyTask("numbers", Numbers(10), 8)
    with pytest.raises(ConfigError, match="numbers: 10 different items are all that it has"):
        task.items(11, 1)


def test_a_part_of_the_score_is_no_right_answer() -> None:
    task = StudyTask("numbers", Numbers(), 8)
    item = Item(prompt="5", reference="bb")
    assert [task.score(item, text) for text in ("b", "bb", "c")] == [1.0, 0.0, 0.0]


def test_drawn_items_are_those_of_the_task() -> None:
    task = StudyTask("numbers", Numbers(), 8)
    drawn = Drawn(task, 1, tuple(task.items(20, 1)))
    assert drawn.items(7, 1) == task.items(7, 1)
    assert drawn.items(None, 1) == task.items(20, 1)
    assert (drawn.name, drawn.score(drawn.found[0], "b")) == (task.name, 1.0)
    with pytest.raises(AssertionError, match="another part"):
        drawn.items(7, 2)


def test_items_are_written_as_training_reads_them(tmp_path: Path) -> None:
    items = StudyTask("numbers", Numbers(), 8).items(3, 1)
    write_items(tmp_path / "new" / "items.jsonl", items)
    found = [(each.prompt, each.completion) for each in read_documents([tmp_path / "new" / "items.jsonl"])]
    assert found == [(item.prompt, item.reference) for item in items]
    assert json.loads((tmp_path / "new" / "items.jsonl").read_text().splitlines()[0])["prompt"] == items[0].prompt


def test_the_datasets_of_the_plan_are_there_with_scorers_that_take_their_own_answers() -> None:
    pytest.importorskip("reasoning_gym", reason="it is in the extra [study]; CI has it")
    from study.plan import TASKS

    for short, line, longest in TASKS:
        task = study_task(short, line, longest)
        for item in task.items(3, 1):
            assert task.score(item, f" {item.reference}\n") == 1.0
            assert task.score(item, "?") == 0.0
