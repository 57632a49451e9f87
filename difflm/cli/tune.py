"""`difflm tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from difflm.cli.options import folder, model_options, open_model
from difflm.cli.sweep import answering_options
from difflm.errors import ConfigError


@click.command()
@click.argument("model", type=folder())
@click.option(
    "--task",
    metavar="TASK",
    show_default="none",
    help="FILE.jsonl with prompt and answer, or reasoning-gym:DATASET[:SETTING=VALUE,...].",
)
@click.option(
    "--prompts",
    type=folder(),
    show_default="none",
    help="JSONL file of prompts instead: answers are held against those of the most careful setting.",
)
@click.option("--items", type=click.IntRange(1), default=100, show_default=True, help="Items or prompts per setting.")
@click.option(
    "--max-loss",
    type=float,
    default=0.01,
    show_default=True,
    help="Score that may be lost against the most careful setting.",
)
@click.option(
    "--output", type=folder(), show_default="none", help="Folder that keeps the points; a repeated call goes on."
)
@click.option(
    "--window",
    "windows",
    type=click.IntRange(2),
    multiple=True,
    show_default="2, 4, 8, 16, 32 up to the block of a model that drafts",
    help="Window to draft and verify, tokens, repeatable.",
)
@click.option("--dry-run", is_flag=True, help="Measure and choose, write nothing into MODEL.")
@answering_options
@model_options
def tune(
    model: Path,
    *,
    task: str | None,
    prompts: Path | None,
    items: int,
    max_loss: float,
    output: Path | None,
    windows: tuple[int, ...],
    dry_run: bool,
    seed: int,
    max_new_tokens: int,
    stop: tuple[str, ...],
    chat_template: bool,
    max_requests: int,
    thresholds: tuple[float, ...],
    block_sizes: tuple[int, ...],
    **place: Any,
) -> None:
    """Find how MODEL is decoded fastest on this machine without losing quality.

    Block sizes and thresholds are tried. With a model that drafts also next_token and verified at each window, with
    what a row costs here (measured first); where its adapter only drafts, nothing else. What is found is written to
    its generation_config.json, where generate, chat and the Python API take their defaults from.
    """
    from difflm.decode.request import SamplingParams
    from difflm.display import show_points, sweep_watcher
    from difflm.evaluation import tune as tuning
    from difflm.evaluation.sweep import Plan, rows_of
    from difflm.evaluation.tasks import task_of

    if (task is None) == (prompts is None):
        raise ConfigError("--task, --prompts: give one of them, a task with answers or a file of prompts")
    plan = Plan(
        task=task_of(task) if task is not None else tuning.Prompts(prompts or Path()),
        items=items,
        seed=seed,
        params=SamplingParams(max_new_tokens=max_new_tokens, stop=stop),
        max_requests=max_requests,
        chat_template=chat_template,
        place={key: value for key, value in place.items() if key != "revision"},
    )
    if not dry_run:
        tuning.check_writable(model)
    loaded = open_model(model, **place)
    with sweep_watcher() as watcher:
        found = tuning.tune(
            loaded,
            plan,
            max_loss=max_loss,
            thresholds=thresholds,
            block_sizes=block_sizes,
            windows=windows,
            folder=output,
            watcher=watcher,
        )
    show_points(rows_of([found.careful, *found.points]))
    click.echo(tuning.describe(found))
    if not dry_run:
        click.echo(f"written to {tuning.write_defaults(model, found.chosen)}")
