"""A model's own answers as training data: those that a task's scorer finds right, with what each forward decided.

A kept answer is a line of prompt + completion, as every run reads it; a right and a wrong answer to one prompt are a
line of preference. docs/data.md lists the fields.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difflm.checkpoints.folders import replace_text
from difflm.decode.engine import Engine, seeds
from difflm.decode.events import Completion, Finished
from difflm.decode.recorder import Recorder, StepMap, recorder_of
from difflm.errors import ConfigError
from difflm.evaluation.answers import noise_key
from difflm.evaluation.measuring import encoded

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel
    from difflm.decode.request import SamplingParams
    from difflm.evaluation.tasks import Item, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An answer of the model.

    Attributes:
        number: of the item that it answers.
        prompt: of the item.
        completion: what the model wrote.
        score: of the task, 0 to 1.
        steps: the step map.
        chat_template: whether the prompt was a user's turn.
        exact: whether it ended in EOS, and its text is encoded to the very tokens that were decoded: then training on
            the text learns what was decoded, up to its end.
    """

    number: int
    prompt: str
    completion: str
    score: float
    steps: StepMap
    chat_template: bool
    exact: bool

    def record(self, task: str) -> dict[str, Any]:
        """Return the line of a kept answer; JSON values.

        Args:
            task: its name.
        """
        done = self.steps.completion
        first = len(self.steps.prompt)
        cells = [cell for cell in self.steps.cells() if first <= cell.position < first + len(done.tokens)]
        return {
            "prompt": _turns(self.prompt, "user") if self.chat_template else self.prompt,
            "completion": _turns(self.completion, "assistant") if self.chat_template else self.completion,
            "task": task,
            "score": self.score,
            "model": self.steps.model,
            "policy": self.steps.policy,
            "seed": self.steps.seed,
            "block_size": self.steps.block_size,
            "prompt_tokens": first,
            "tokens": list(done.tokens),
            "steps": [cell.step for cell in cells],
            "confidences": [cell.confidence for cell in cells],
            "forwards": done.forwards.denoise + done.forwards.commit,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What became of the answers of one task.

    Attributes:
        task: its name.
        right: kept answers, each text once for a prompt.
        pairs: (right, wrong) answers to one prompt, one pair for each prompt that has both.
        counts: answers by what became of them: "kept", "wrong", "unfinished" or "respelt" (right, but not `exact`: did
            not end, or is encoded otherwise), "repeated".
    """

    task: str
    right: list[Attempt]
    pairs: list[tuple[Attempt, Attempt]]
    counts: Counter[str]

    def __str__(self) -> str:
        """Return one line with the counts."""
        named = ("wrong", "unfinished", "respelt", "repeated")
        rest = ", ".join(f"{self.counts[name]} {name}" for name in named)
        return (
            f"{self.task}: {self.counts.total()} answers, {self.counts['kept']} kept, {rest}, {len(self.pairs)} pairs"
        )


def attempts(
    loaded: LoadedModel,
    task: Task,
    items: Sequence[Item],
    params: SamplingParams,
    *,
    max_requests: int = 64,
    chat_template: bool = False,
    each: Callable[[], object] = lambda: None,
) -> list[Attempt]:
    """Return `n` answers to every item, one item's together, scored and with their step maps.

    Args:
        loaded: the model; it needs a tokenizer.
        task: scores.
        items: of the task, at least one.
        params: how they are decoded, `n` of each. At a temperature above 0 every answer has draws of its own.
        max_requests: answers that are decoded together.
        chat_template: whether a prompt is a user's turn.
        each: called when an answer is decoded.

    Raises:
        ConfigError: no items.
        RequestError: an item that does not fit the model, or parameters that do not.
    """
    if not items:
        raise ConfigError("items: there are none; give --items at least 1")
    engine = Engine(loaded, max_requests=max_requests)
    asked: dict[int, tuple[int, Recorder]] = {}
    for number, item in enumerate(items):
        prompt = encoded(loaded, item.prompt, chat_template=chat_template)
        for seed in seeds(replace(params, seed=noise_key(task.name, params.seed, number) >> 1)):
            one = replace(params, n=1, seed=seed)
            # The pieces of text are for people; a line of data has the text itself.
            recorder = replace(recorder_of(loaded, prompt, one), decode=None)
            asked[engine.submit(prompt, one)] = number, recorder
    finished: dict[int, Completion] = {}
    while len(finished) < len(asked):
        for event in engine.step():
            asked[event.request_id][1].apply(event)
            if isinstance(event, Finished):
                finished[event.request_id] = event.completion
                each()
    made: list[Attempt] = []
    for request, (number, recorder) in asked.items():
        done, item = finished[request], items[number]
        text = done.text or ""
        made.append(
            Attempt(
                number=number,
                prompt=item.prompt,
                completion=text,
                score=task.score(item, text),
                steps=recorder.map,
                chat_template=chat_template,
                exact=done.finish_reason == "stop" and loaded.encode(text) == list(done.tokens),
            )
        )
    return made


def kept(task: str, made: Sequence[Attempt], *, least_score: float = 1.0) -> Kept:
    """Return which answers are training data.

    Args:
        task: its name.
        made: answers, one item's together.
        least_score: what counts as right. A wrong answer stands in a pair only if it is `exact`, too: both sides then
            are what the model wrote.
    """
    counts, right, pairs = Counter[str](), list[Attempt](), list[tuple[Attempt, Attempt]]()
    for group in _by_item(made):
        known, wrong = dict[str, Attempt](), list[Attempt]()
        for each in group:
            if each.score < least_score:
                counts["wrong"] += 1
                wrong += [each] if each.exact else []
            elif not each.exact:
                counts["unfinished" if each.steps.completion.finish_reason != "stop" else "respelt"] += 1
            else:
                counts["repeated" if each.completion in known else "kept"] += 1
                known.setdefault(each.completion, each)
        right += known.values()
        if known and wrong:
            pairs.append((next(iter(known.values())), wrong[0]))
    return Kept(task=task, right=right, pairs=pairs, counts=counts)


def pair_record(task: str, right: Attempt, wrong: Attempt) -> dict[str, Any]:
    """Return the line of a preference pair; JSON values.

    Args:
        task: its name.
        right: an answer.
        wrong: another one to the same prompt.
    """
    assert right.prompt == wrong.prompt, "both answer one prompt"
    chat = right.chat_template
    return {
        "prompt": _turns(right.prompt, "user") if chat else right.prompt,
        "chosen": _turns(right.completion, "assistant") if chat else right.completion,
        "rejected": _turns(wrong.completion, "assistant") if chat else wrong.completion,
        "task": task,
        "score_chosen": right.score,
        "score_rejected": wrong.score,
    }


def write_records(path: Path, found: Sequence[Kept]) -> int:
    """Write the kept answers of tasks, one a line, aside and then renamed; returns how many."""
    return _write(path, [each.record(one.task) for one in found for each in one.right])


def write_pairs(path: Path, found: Sequence[Kept]) -> int:
    """Write the preference pairs of tasks, one a line, aside and then renamed; returns how many."""
    return _write(path, [pair_record(one.task, *pair) for one in found for pair in one.pairs])


def _write(path: Path, records: Sequence[dict[str, Any]]) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, "".join(f"{json.dumps(record)}\n" for record in records))
    return len(records)


def _by_item(made: Sequence[Attempt]) -> Iterator[list[Attempt]]:
    groups: dict[int, list[Attempt]] = {}
    for each in made:
        groups.setdefault(each.number, []).append(each)
    yield from groups.values()


def _turns(text: str, role: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]
