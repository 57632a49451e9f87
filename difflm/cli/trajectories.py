"""`difflm trajectories`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from difflm.cli.options import folder, model_options, open_model
from difflm.cli.sampling import sampling_options
from difflm.errors import ConfigError

if TYPE_CHECKING:
    from difflm.decode.request import SamplingParams


@click.command()
@click.argument("model", type=folder())
@click.option(
    "--task",
    "tasks",
    required=True,
    multiple=True,
    metavar="TASK",
    help="FILE.jsonl with prompt and answer, or reasoning-gym:DATASET[:SETTING=VALUE,...]; repeatable.",
)
@click.option("--output", required=True, type=folder(), metavar="FILE", help="JSONL file for the right answers.")
@click.option(
    "--pairs", type=folder(), metavar="FILE", show_default="none", help="JSONL file for preference pairs; needs --n."
)
@click.option("--items", type=click.IntRange(1), show_default="500 of a dataset, all of a file", help="Of each task.")
@click.option("--item-seed", type=click.IntRange(0), default=0, show_default=True, help="Of the choice of items.")
@click.option(
    "--least-score", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="What counts as right."
)
@click.option(
    "--chat-template/--plain",
    default=False,
    show_default=True,
    help="Whether a prompt is a user's turn in the model's chat template, or text to go on with.",
)
@click.option("--max-requests", type=click.IntRange(1), default=64, show_default=True, help="Answers decoded together.")
@click.option("--fresh", is_flag=True, show_default="off", help="Replace files that are there.")
@sampling_options
@model_options
def trajectories(
    model: Path,
    *,
    tasks: tuple[str, ...],
    output: Path,
    pairs: Path | None,
    items: int | None,
    item_seed: int,
    least_score: float,
    chat_template: bool,
    max_requests: int,
    fresh: bool,
    params: SamplingParams,
    **place: Any,
) -> None:
    """Let MODEL answer tasks, and keep what the scorer says is right as training data.

    Each line of --output is prompt + completion, with the forward that decided each token; `difflm train cap` and
    every other recipe read it. With --n above 1 and a temperature, prompts that have right and wrong answers make the
    pairs of --pairs, for `difflm train dpo`. Take items that no evaluation uses: another --item-seed.
    """
    from difflm.evaluation.tasks import task_of
    from difflm.evaluation.trajectories import attempts, kept, write_pairs, write_records

    for path in filter(None, (output, pairs)):
        if path.exists() and not fresh:
            raise ConfigError(f"{path}: is there already; give another file, or --fresh to replace it")
    if pairs is not None and (params.n < 2 or params.temperature <= 0):
        raise ConfigError(
            f"--pairs: --n {params.n} at --temperature {params.temperature} gives no two answers that differ; "
            "give --n 4 --temperature 1"
        )
    chosen = [task_of(text) for text in tasks]
    loaded = open_model(model, **place)
    found = []
    for task in chosen:
        asked = task.items(items, item_seed)
        made = attempts(loaded, task, asked, params, max_requests=max_requests, chat_template=chat_template)
        found.append(kept(task.name, made, least_score=least_score))
        click.echo(str(found[-1]), err=True)
    click.echo(f"{output}: {write_records(output, found)} answers")
    if pairs is not None:
        click.echo(f"{pairs}: {write_pairs(pairs, found)} pairs")
