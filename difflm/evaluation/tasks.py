"""Questions with known answers: generated ones of reasoning-gym, or a local JSONL file.

A task is a frozen dataclass. Its items are a function of their number and a seed: every model, policy and setting is
asked the same.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from difflm.errors import ConfigError, DataError

GYM = "reasoning-gym"
ANSWER_FIELDS = ("answer", "completion")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question.

    Attributes:
        prompt: text of the question.
        reference: text of the answer.
        metadata: what else the task knows of it.
    """

    prompt: str
    reference: str
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Task(Protocol):
    """Items and how answers to them are scored."""

    @property
    def name(self) -> str:
        """What the task is called in results; `task_of` makes the same task from it."""
        ...

    def items(self, n: int | None, seed: int) -> list[Item]:
        """Return the items of a seed.

        Args:
            n: how many; fewer come back where the task has fewer. None is the task's own number.
            seed: of the choice.
        """
        ...

    def score(self, item: Item, text: str) -> float:
        """Return the score of an answer, 0 to 1.

        Args:
            item: of this task.
            text: what the model wrote behind the prompt.
        """
        ...


@dataclass(frozen=True, slots=True)
class ReasoningGym:
    """A dataset of the package reasoning-gym, with its own scorer. Its items are made, never downloaded.

    The answer is what the last `<answer>` tags enclose, if there are any, else all of the text without space around it.

    Attributes:
        dataset: its name there, e.g. "chain_sum".
        settings: of the dataset, under its own names, in order.

    Raises:
        ConfigError: an unknown dataset, a setting that it does not take, or the package is not installed.
    """

    dataset: str
    settings: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        self._made(1, 0)

    @property
    def name(self) -> str:
        """`reasoning-gym:DATASET`, and the settings."""
        settings = ",".join(f"{key}={json.dumps(value)}" for key, value in self.settings)
        return ":".join(filter(None, (GYM, self.dataset, settings)))

    def items(self, n: int | None, seed: int) -> list[Item]:
        """Return items number 0 to n - 1 of the seed; None is 500."""
        made = self._made(500 if n is None else n, seed)
        return [
            Item(prompt=entry["question"], reference=entry["answer"], metadata=entry["metadata"])
            for entry in (made[number] for number in range(len(made)))
        ]

    def score(self, item: Item, text: str) -> float:
        """Return the dataset's own score; some give part of it for part of an answer."""
        from reasoning_gym.utils import extract_answer

        tagged = extract_answer(text)
        entry = {"question": item.prompt, "answer": item.reference, "metadata": dict(item.metadata)}
        return float(self._made(1, 0).score_answer(text.strip() if tagged is None else tagged, entry))

    def _made(self, size: int, seed: int) -> Any:
        try:
            from reasoning_gym import create_dataset
            from reasoning_gym.factory import DATASETS
        except ImportError:
            raise ConfigError(f"{GYM}: the package is not installed; pip install 'difflm[eval]'") from None
        if self.dataset not in DATASETS:
            raise ConfigError(f"{GYM}: there is no dataset {self.dataset!r}; e.g. chain_sum, see its gallery")
        try:
            return create_dataset(self.dataset, size=size, seed=seed, **dict(self.settings))
        except (TypeError, AssertionError, ValueError) as error:
            raise ConfigError(f"{GYM}: {self.dataset} does not take these settings: {error}") from None


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A JSONL file, one object a line with the texts "prompt" and "answer" (or "completion"): right is what is equal.

    Space around answers does not count; other fields become metadata.

    Attributes:
        path: the file.
    """

    path: Path

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def items(self, n: int | None, seed: int) -> list[Item]:
        """Return n lines, chosen by the seed, in the file's order; all of them if n is None or more.

        Raises:
            DataError: a line that is no such object, or no line.
        """
        lines = self.path.read_text(encoding="utf-8").splitlines()
        items = [self._item(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
        if not items:
            raise DataError(f"{self.path}: it has no items; write one JSON object a line")
        if n is None or n >= len(items):
            return items
        return [items[number] for number in sorted(random.Random(seed).sample(range(len(items)), n))]

    def score(self, item: Item, text: str) -> float:
        """Return 1 for the reference, else 0."""
        return float(text.strip() == item.reference.strip())

    def _item(self, number: int, line: str) -> Item:
        where = f"{self.path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: no JSON ({error.msg}); write one object a line") from None
        answer = next((name for name in ANSWER_FIELDS if isinstance(record, dict) and name in record), None)
        if answer is None or not isinstance(record.get("prompt"), str) or not isinstance(record[answer], str):
            raise DataError(f'{where}: an item needs the texts "prompt" and "answer" (or "completion")')
        rest = {key: value for key, value in record.items() if key not in ("prompt", answer)}
        return Item(prompt=record["prompt"], reference=record[answer], metadata=rest)


def task_of(text: str) -> Task:
    """Return the task that a line names: FILE.jsonl, or reasoning-gym:DATASET[:SETTING=VALUE,...].

    Raises:
        ConfigError: another form, an unknown dataset or setting.
    """
    if not text.startswith(f"{GYM}:"):
        if text.endswith(".jsonl"):
            return LocalFile(Path(text))
        raise ConfigError(f"task: {text!r} is none; give FILE.jsonl or {GYM}:DATASET[:SETTING=VALUE,...]")
    _, dataset, *rest = text.split(":", maxsplit=2)
    settings: list[tuple[str, Any]] = []
    for part in filter(None, ",".join(rest).split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"{GYM}: {part!r} is no setting; write SETTING=VALUE,SETTING=VALUE")
        settings.append((key, _value(value)))
    return ReasoningGym(dataset, tuple(settings))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
