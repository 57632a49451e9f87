"""Kept answers are right, whole and what was decoded; pairs hold a right and a wrong one; runs read both."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import difflm
from difflm.data.sources import read_documents
from difflm.decode.events import Finished
from difflm.decode.request import SamplingParams
from difflm.errors import ConfigError
from difflm.evaluation.tasks import Item, LocalFile
from difflm.evaluation.trajectories import Attempt, attempts, kept, write_pairs, write_records
from tests.evaluation.models import workshop

__all__ = ["workshop"]

GREEDY = SamplingParams(max_new_tokens=6, policy=difflm.policy("native", threshold=1.0, block_length=4))
DRAWN = SamplingParams(max_new_tokens=5, block_size=4, temperature=2.0, n=3, threshold=0.02)


def answered(
    workshop: Path, params: SamplingParams, *, items: list[Item] | None = None, max_requests: int = 64
) -> list[Attempt]:
    loaded, task = difflm.load_model(workshop / "model"), LocalFile(workshop / "items.jsonl")
    return attempts(loaded, task, items or task.items(None, 0), params, max_requests=max_requests)


def finished(attempt: Attempt, **changes: object) -> Attempt:
    """Return the attempt as if its answer had ended in EOS, or otherwise changed."""
    last = attempt.steps.events[-1]
    assert isinstance(last, Finished)
    done = dataclasses.replace(last.completion, finish_reason="stop")
    steps = dataclasses.replace(
        attempt.steps, events=(*attempt.steps.events[:-1], dataclasses.replace(last, completion=done))
    )
    return dataclasses.replace(attempt, steps=steps, exact=True, **changes)  # pyright: ignore[reportArgumentType]


def test_attempts_are_what_the_engine_decodes_with_the_scores_of_the_task(workshop: Path) -> None:
    made = answered(workshop, GREEDY)
    loaded = difflm.load_model(workshop / "model")
    for number, each in enumerate(made):
        alone = difflm.generate(loaded, [each.prompt], GREEDY)[0]
        assert (each.number, each.completion, each.score) == (number, alone.text, number % 2)
        assert list(each.steps.completion.tokens) == alone.tokens
        assert not each.exact, "nothing ends in EOS here"


def test_draws_are_those_of_the_item_whoever_is_asked_beside_it(workshop: Path) -> None:
    made = answered(workshop, DRAWN)
    assert len(made) == 18
    assert [each.number for each in made] == [number for number in range(6) for _ in range(3)]
    assert len({each.steps.seed for each in made}) == 18
    again = answered(workshop, DRAWN, max_requests=1)
    assert [each.completion for each in again] == [each.completion for each in made]


def test_the_line_says_which_forward_decided_each_token(workshop: Path) -> None:
    [each, *_] = answered(workshop, dataclasses.replace(GREEDY, policy=None, block_size=4, threshold=0.003))
    line = each.record("task")
    tokens = line["tokens"]
    assert len(line["steps"]) == len(line["confidences"]) == len(tokens)
    row = each.steps.replayed()
    assert row[line["prompt_tokens"] :][: len(tokens)] == tokens
    cells = {cell.position: cell for cell in each.steps.cells()}
    assert line["steps"] == [cells[line["prompt_tokens"] + place].step for place in range(len(tokens))]
    assert min(line["steps"]) == 1
    assert max(line["steps"]) <= line["forwards"]


def test_only_what_is_right_whole_and_new_is_kept(workshop: Path) -> None:
    wrong, right, *_ = answered(workshop, GREEDY)
    whole = finished(right)
    unfinished = right
    respelt = dataclasses.replace(finished(right), exact=False)
    made = [
        dataclasses.replace(each, number=0)
        for each in (wrong, whole, unfinished, respelt, whole, finished(wrong), finished(right, score=0.5))
    ]
    found = kept("task", made)
    assert found.counts == {"wrong": 3, "kept": 1, "unfinished": 1, "respelt": 1, "repeated": 1}
    assert [each.completion for each in found.right] == [right.completion]
    [(chosen, rejected)] = found.pairs
    assert (chosen.score, rejected.score) == (1.0, 0.0)
    assert rejected.exact, "an answer that did not end is no answer to learn against"
    assert str(found) == "task: 7 answers, 1 kept, 3 wrong, 1 unfinished, 1 respelt, 1 repeated, 1 pairs"
    # what counts as right is the caller's to say; the same answer again makes no second line
    assert kept("task", made, least_score=0.5).counts["repeated"] == 2


def test_answers_to_different_prompts_make_no_pair(workshop: Path) -> None:
    wrong, right, *_ = answered(workshop, GREEDY)
    assert kept("task", [finished(wrong), finished(right)]).pairs == []


def test_runs_read_the_lines(workshop: Path, tmp_path: Path) -> None:
    wrong, right, *_ = answered(workshop, GREEDY)
    found = [kept("task", [finished(right, number=0), finished(wrong, number=0, prompt=right.prompt)])]
    assert write_records(tmp_path / "right.jsonl", found) == 1
    assert write_pairs(tmp_path / "pairs.jsonl", found) == 1
    line = json.loads((tmp_path / "right.jsonl").read_text())
    assert (line["prompt"], line["completion"]) == (right.prompt, right.completion)
    [document] = read_documents([tmp_path / "right.jsonl"])
    assert (document.prompt, document.completion) == (right.prompt, right.completion)
    pair = json.loads((tmp_path / "pairs.jsonl").read_text())
    assert (pair["chosen"], pair["rejected"]) == (right.completion, wrong.completion)


def test_a_turn_of_a_chat_is_written_as_messages(workshop: Path) -> None:
    loaded, task = difflm.load_model(workshop / "model"), LocalFile(workshop / "items.jsonl")
    [each] = attempts(loaded, task, task.items(None, 0)[:1], GREEDY, chat_template=True)
    line = each.record("task")
    assert line["prompt"] == [{"role": "user", "content": each.prompt}]
    assert line["completion"] == [{"role": "assistant", "content": each.completion}]


def test_no_items_are_refused(workshop: Path) -> None:
    loaded, task = difflm.load_model(workshop / "model"), LocalFile(workshop / "items.jsonl")
    with pytest.raises(ConfigError, match="there are none"):
        attempts(loaded, task, [], GREEDY)
