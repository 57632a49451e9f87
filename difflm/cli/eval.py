"""`difflm eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from difflm.cli.options import folder, model_options, open_model
from difflm.cli.sampling import sampling_options
from difflm.errors import ConfigError

if TYPE_CHECKING:
    from difflm.decode.request import SamplingParams


@click.command(name="eval")
@click.argument("model", type=folder())
@click.option(
    "--tasks",
    required=True,
    metavar="TASK,...",
    help="Names or YAML files of lm-evaluation-harness, FILE.jsonl, reasoning-gym:DATASET[:SETTING=VALUE,...].",
)
@click.option(
    "--include-path", type=folder(), multiple=True, show_default="none", help="Folder of task YAML files, repeatable."
)
@click.option("--output", type=folder(), show_default="none", help="JSON file for results and all that led to them.")
@click.option("--limit", type=click.IntRange(1), show_default="all, 500 if generated", help="Questions per task.")
@click.option("--num-fewshot", type=click.IntRange(0), show_default="the task's", help="Worked examples per question.")
@click.option(
    "--chat-template/--plain",
    default=False,
    show_default=True,
    help="Whether questions are put into the model's chat template.",
)
@click.option(
    "--likelihood",
    type=click.Choice(["elbo", "chain", "next_token"]),
    show_default="elbo; next_token if MODEL drafts or says so; chain without a mask token",
    help="The bound at --block-size; exact, left to right: at block size 1, or without masks.",
)
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Masks per bound at most; a text with no more than that is exact.",
)
@click.option(
    "--batch-tokens", type=click.IntRange(1), default=8192, show_default=True, help="Of a likelihood's forward, tokens."
)
@click.option(
    "--max-requests", type=click.IntRange(1), default=64, show_default=True, help="Answers decoded together, at most."
)
@sampling_options
@model_options
def evaluate(
    model: Path,
    *,
    tasks: str,
    include_path: tuple[Path, ...],
    output: Path | None,
    limit: int | None,
    num_fewshot: int | None,
    chat_template: bool,
    likelihood: Literal["elbo", "chain", "next_token"] | None,
    samples: int,
    batch_tokens: int,
    max_requests: int,
    params: SamplingParams,
    **where: Any,
) -> None:
    """Evaluate MODEL on tasks of lm-evaluation-harness, local files and generated questions, without a network.

    What a task says about decoding goes before the options. --seed is also that of the masks. See docs/evaluation.md.
    """
    from difflm.evaluation.answers import AnswerSettings
    from difflm.evaluation.harness import Evaluation
    from difflm.evaluation.harness import evaluate as run

    if output is not None and not output.absolute().parent.is_dir():
        raise ConfigError(f"--output: the folder of {output} does not exist; make it first")
    settings = AnswerSettings(
        params=params, likelihood=likelihood, samples=samples, batch_tokens=batch_tokens, max_requests=max_requests
    )
    evaluation = Evaluation(
        tasks=split_tasks(tasks),
        settings=settings,
        include=include_path,
        limit=limit,
        num_fewshot=num_fewshot,
        chat_template=chat_template,
    )
    results = run(open_model(model, **where), evaluation, say=lambda line: click.echo(line, err=True))
    for line in table(results):
        click.echo(line)
    if output is not None:
        output.write_text(json.dumps(results, indent=2, default=str) + "\n", encoding="utf-8")


def split_tasks(text: str) -> list[str]:
    """Return the tasks of a list with commas; the settings of a generated task have commas of their own.

    Raises:
        ConfigError: there is none.
    """
    found: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        # NAME:SETTING=1,SETTING=2 is one task.
        if "=" in part and ":" not in part and found and ":" in found[-1]:
            found[-1] += f",{part}"
        else:
            found.append(part)
    if not found:
        raise ConfigError("--tasks: it names none; give at least one")
    return found


def table(results: dict[str, Any]) -> list[str]:
    """Return the lines of a table: a line per metric, with what the answers cost.

    Args:
        results: of `difflm.evaluation.harness.evaluate`.
    """
    rows: list[tuple[str, ...]] = [("task", "metric", "value", "+-", "questions", "forwards", "TPF", "TPS")]
    for name, task in results["tasks"].items():
        cost = task["cost"] or {}
        generation, likelihood = cost.get("generation"), cost.get("likelihood")
        speed = ("", "", "")
        if generation:
            forwards = generation["forwards"]["denoise"] + generation["forwards"]["commit"]
            rates = (generation["tokens_per_forward"], generation["tokens_per_second"])
            speed = (str(forwards), f"{rates[0]:.2f}", f"{rates[1]:.1f}")
        elif likelihood:
            speed = (str(likelihood["forwards"]), "", "")
        for metric, each in task["metrics"].items():
            error = each["standard_error"]
            spread = "" if error is None else f"{error:.4f}"
            questions = "" if task["questions"] is None else str(task["questions"])
            rows.append((name, metric, f"{each['value']:.4f}", spread, questions, *speed))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(_cell(cell, column, widths) for column, cell in enumerate(row)).rstrip() for row in rows]


def _cell(text: str, column: int, widths: list[int]) -> str:
    """Names stand left, numbers right."""
    return text.ljust(widths[column]) if column < 2 else text.rjust(widths[column])
