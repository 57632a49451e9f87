"""The model that comes with the package, so that there is something to talk to before there is a checkpoint.

`make study` made it: 5M parameters, from random weights through every stage. It answers small puzzles in the words that
it was trained on, and nothing else; see model/README.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent / "model"

NAME = "difflm-builtin"
"""Under which a server offers it."""


@dataclass(frozen=True, slots=True)
class Example:
    """A question that the model answers right, none that it learnt from.

    Attributes:
        task: name in docs/study.md.
        question: a user's message.
        answer: the whole of it.
    """

    task: str
    question: str
    answer: str


def builtin_model() -> Path:
    """Return the folder of the model that comes with the package, for `difflm.load_model`."""
    return _FOLDER


def examples() -> tuple[Example, ...]:
    """Return one question of each task, with its answer."""
    lines = (_FOLDER / "examples.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Example(**json.loads(line)) for line in lines)
