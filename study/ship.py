"""A stage's model -> a folder to talk to: weights in bfloat16, a chat template, questions that it answers, a card.

python -m study.ship FOLDER STAGE TARGET

With TARGET difflm/builtin/model it becomes the model that comes with the package.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from difflm import DifflmError, LoadedModel, SamplingParams, generate, load_model, merge
from difflm.checkpoints.card import model_card
from difflm.checkpoints.fields import write_json
from difflm.checkpoints.folders import replace_text
from difflm.errors import ConfigError
from difflm.training.state import checkpoint_folders
from study.plan import EVALUATION, TASKS
from study.report import task_table
from study.results import Results
from study.targets import at_default
from study.tasks import CUE, StudyTask, study_task

_LAST = "(messages | selectattr('role', 'equalto', 'user') | list | last).content"
CHAT_TEMPLATE = f"{{{{ {_LAST} | trim ~ {CUE!r} }}}}"
"""A chat's last question, in the form that the model learnt. It knows no conversation."""

PARENT = "difflm-study-parent"
TRIES = 50
"""Items of a task among which one has to be answered right."""

_SECTION = """
## What it is

A language model of {parameters:,} parameters that difflm's `make study` made from random weights (stage `{stage}`). It
answers small puzzles ([reasoning-gym](https://pypi.org/project/reasoning-gym/)) in the words that it was trained on and
nothing else: no English, no facts, no conversation (the chat template shows it the last question alone). It is there to
see blocks denoise, and for tests. Questions that it answers right are in `examples.jsonl`.

## What it answers

Unseen items, decoded in blocks of {block_size} at threshold {threshold}, before its weights were rounded to bfloat16.
{table}"""


def ship(folder: Path, stage: str, target: Path, *, tasks: Sequence[StudyTask], say: Callable[[str], object]) -> None:
    """Write the folder.

    Args:
        folder: of a study.
        stage: whose model.
        target: an absent or empty folder.
        tasks: that the model learnt.
        say: is told what goes on.

    Raises:
        ConfigError: the stage has no checkpoint or no figures, or none of its first `TRIES` answers of a task is right.
        CheckpointError: `target` is not free.
    """
    results = Results(folder / "results.jsonl")
    rows, checkpoints = at_default(results, stage), checkpoint_folders(folder / "runs" / stage)
    if not rows or not checkpoints:
        known = sorted({row["stage"] for row in results.of("score")})
        raise ConfigError(f"{folder}: {stage!r} was not trained and scored; take one of {known}")
    merge(checkpoints[-1:], target, dtype="bfloat16")
    replace_text(target / "chat_template.jinja", CHAT_TEMPLATE)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    config["difflm"]["parent"]["name"] = PARENT  # known as a step of its run so far
    write_json(target / "config.json", config)
    loaded = load_model(target)
    # What it answers best comes first: who tries a question changes its numbers.
    share = {row["task"]: row["right"] / row["items"] for row in rows}
    chosen = [_example(loaded, task) for task in sorted(tasks, key=lambda each: -share[each.short])]
    replace_text(target / "examples.jsonl", "".join(f"{json.dumps(each)}\n" for each in chosen))
    section = _SECTION.format(
        parameters=sum(each.numel() for each in loaded.model.parameters()),
        stage=stage,
        block_size=rows[0]["block_size"],
        threshold=rows[0]["threshold"],
        table=task_table(results, (stage,)),
    )
    replace_text(target / "README.md", model_card(config) + section)
    say(f"{target}: {sum(each.stat().st_size for each in target.iterdir()) / 2**20:.1f} MiB, {len(chosen)} examples")


def _example(loaded: LoadedModel, task: StudyTask) -> dict[str, str]:
    """Return the first question that the model answers right, one whose answer is not written in it if there is any."""
    asked = task.items(TRIES, EVALUATION)
    answers = generate(loaded, [each.prompt for each in asked], SamplingParams(max_new_tokens=task.max_new_tokens))
    texts = [answer.text or "" for answer in answers]
    right = [(item, text) for item, text in zip(asked, texts, strict=True) if task.score(item, text)]
    if not right:
        raise ConfigError(f"{task.short}: none of {TRIES} answers is right; ship a better stage")
    item, text = next((each for each in right if each[1] not in each[0].prompt), right[0])
    return {"task": task.short, "question": item.prompt.removesuffix(CUE), "answer": text}


def main(arguments: Sequence[str] | None = None, say: Callable[[str], object] = print) -> int:
    """Parse the command line and write the folder; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m study.ship", description="A stage's model, ready to talk to.")
    parser.add_argument("folder", type=Path, help="of the study")
    parser.add_argument("stage", help="sft, cap, ...")
    parser.add_argument("target", type=Path, help="absent or empty folder")
    options = parser.parse_args(arguments)
    try:
        ship(options.folder, options.stage, options.target, tasks=[study_task(*each) for each in TASKS], say=say)
    except DifflmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
