"""What the study asks: tasks of reasoning-gym, items apart for training and evaluation, right or wrong as it scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from difflm.checkpoints.folders import replace_text
from difflm.errors import ConfigError
from difflm.evaluation.tasks import Item, Task, task_of

RIGHT = 0.999
"""Least score of a right answer: some scorers give a part of 1 for a part of an answer, which does not count here."""

CUE = "\nAnswer:"
"""Stands between question and answer."""

CHUNK = 2000
SEED_ROOM = 1 << 26
"""reasoning-gym makes item i of seed s from s + i: seeds closer than the number of items would share them."""


@dataclass(frozen=True, slots=True)
class StudyTask:
    """A dataset of reasoning-gym with the study's cue, and 1 or 0 as its score.

    Attributes:
        short: name in tables.
        gym: the dataset; items of near seeds may be the same.
        max_new_tokens: longest answer, tokens.
    """

    short: str
    gym: Task
    max_new_tokens: int

    @property
    def name(self) -> str:
        """That of the dataset, with its settings."""
        return self.gym.name

    def items(self, n: int | None, seed: int) -> list[Item]:
        """Return the first n items of a part (its number is the seed) whose prompts differ; None is 500."""
        found = self.stream(seed)
        return [next(found) for _ in range(500 if n is None else n)]

    def stream(self, part: int, taken: Set[str] = frozenset()) -> Iterator[Item]:
        """Yield items of a part for ever: no prompt twice, none of `taken`.

        Args:
            part: numbers parts whose items are made from different seeds.
            taken: prompts to pass over.

        Raises:
            ConfigError: the dataset has nothing new in 20 chunks.
        """
        known, idle, start = set(taken), 0, part * SEED_ROOM
        while idle < 20:
            fresh = [each for each in self.gym.items(CHUNK, start) if f"{each.prompt.strip()}{CUE}" not in known]
            idle = 0 if fresh else idle + 1
            for each in fresh:
                prompt = f"{each.prompt.strip()}{CUE}"
                if prompt not in known:
                    known.add(prompt)
                    yield Item(prompt=prompt, reference=each.reference, metadata=each.metadata)
            start += CHUNK
        raise ConfigError(f"{self.name}: {len(known)} different items are all that it has; make its settings wider")

    def score(self, item: Item, text: str) -> float:
        """Return 1 for an answer that the dataset's scorer gives everything for, else 0."""
        return float(self.gym.score(item, text) >= RIGHT)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A task whose items of one part are made already; the others are not there.

    Attributes:
        task: what is asked.
        part: of the items.
        found: the items.
    """

    task: StudyTask
    part: int
    found: tuple[Item, ...]

    @property
    def name(self) -> str:
        """That of the task."""
        return self.task.name

    def items(self, n: int | None, seed: int) -> list[Item]:
        """Return the first n items of the part."""
        assert seed == self.part, "items of another part"
        return list(self.found[:n])

    def score(self, item: Item, text: str) -> float:
        """Return the task's score."""
        return self.task.score(item, text)


def study_task(short: str, line: str, max_new_tokens: int) -> StudyTask:
    """Return a task from its line, `reasoning-gym:DATASET:SETTING=VALUE,...`."""
    return StudyTask(short, task_of(line), max_new_tokens)


def write_items(path: Path, items: Sequence[Item]) -> None:
    """Write items as prompt + completion, one a line, aside and then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": each.prompt, "completion": each.reference}) for each in items]
    replace_text(path, "".join(f"{line}\n" for line in lines))
