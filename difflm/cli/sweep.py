"""`difflm sweep`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from difflm.cli.options import folder, fresh_option, model_options, open_model

Decorated = Callable[..., Any]


def answering_options(command: Decorated) -> Decorated:
    """Add the options that say what is asked, and how long answers are: those of sweep and tune."""
    for option in reversed(
        [
            click.option(
                "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the choice of items."
            ),
            click.option(
                "--max-new-tokens",
                type=click.IntRange(1),
                default=256,
                show_default=True,
                help="Longest answer, tokens.",
            ),
            click.option(
                "--stop",
                multiple=True,
                metavar="TEXT",
                show_default="none",
                help="Text that ends an answer, repeatable.",
            ),
            click.option(
                "--chat-template/--plain",
                default=False,
                show_default=True,
                help="Whether a prompt is a user's turn in the model's chat template, or text to go on with.",
            ),
            click.option(
                "--max-requests",
                type=click.IntRange(1),
                default=1,
                show_default=True,
                help="Answers decoded together; 1 is the speed that one user sees.",
            ),
            click.option(
                "--threshold",
                "thresholds",
                type=click.FloatRange(0),
                multiple=True,
                show_default="see docs/sweep.md",
                help="Threshold to try, repeatable.",
            ),
            click.option(
                "--block-size",
                "block_sizes",
                type=click.IntRange(1),
                multiple=True,
                show_default="see docs/sweep.md",
                help="Block size to try, tokens, repeatable.",
            ),
        ]
    ):
        command = option(command)
    return command


@click.command()
@click.argument("model", type=folder())
@click.option(
    "--task",
    required=True,
    metavar="TASK",
    help="FILE.jsonl with prompt and answer, or reasoning-gym:DATASET[:SETTING=VALUE,...].",
)
@click.option("--output", required=True, type=folder(), help="Folder for points.jsonl, sweep.csv, .json and .png.")
@click.option("--parent", type=folder(), show_default="none", help="AR checkpoint that MODEL was made from.")
@click.option(
    "--items", type=click.IntRange(1), show_default="500 of a dataset, all of a file", help="Items per point."
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="NAME[:SETTING=VALUE,...]",
    show_default="native; of a model that drafts also next_token and verified",
    help="Policy to try, repeatable; what it sets itself is not swept. Also next_token, and verified:window=8.",
)
@answering_options
@fresh_option
@model_options
def sweep(
    model: Path,
    *,
    task: str,
    output: Path,
    parent: Path | None,
    items: int | None,
    policies: tuple[str, ...],
    seed: int,
    max_new_tokens: int,
    stop: tuple[str, ...],
    chat_template: bool,
    max_requests: int,
    thresholds: tuple[float, ...],
    block_sizes: tuple[int, ...],
    fresh: bool,
    **place: Any,
) -> None:
    """Measure score and speed of MODEL over thresholds, block sizes and policies.

    A model that drafts is also measured left to right, without drafts and at each window that it can draft; where its
    adapter does nothing but draft, only so. A sweep that is repeated takes the points that it finds finished. The table
    goes to stdout.
    """
    from difflm.decode.request import SamplingParams
    from difflm.display import show_points, sweep_watcher
    from difflm.evaluation import sweep as sweeping
    from difflm.evaluation.drafting import settings_for
    from difflm.evaluation.tasks import task_of
    from difflm.plots_decoding import new_figure, plot_sweep

    sweeping.grid(policies, thresholds, block_sizes)  # what is wrong is said before the model is read
    plan = sweeping.Plan(
        task=task_of(task),
        items=items,
        seed=seed,
        params=SamplingParams(max_new_tokens=max_new_tokens, stop=stop),
        max_requests=max_requests,
        chat_template=chat_template,
        place={key: value for key, value in place.items() if key != "revision"},
    )
    new_figure((1, 1))  # a missing matplotlib is said before the work
    if fresh:
        (output / sweeping.POINTS).unlink(missing_ok=True)
    loaded = open_model(model, **place)
    settings = settings_for(loaded, policies, thresholds, block_sizes)
    ar = None if parent is None else open_model(parent, **{**place, "revision": None})
    with sweep_watcher() as watcher:
        points = sweeping.sweep(loaded, settings, plan, output, parent=ar, watcher=watcher)
    rows = sweeping.rows_of(points)
    swept = len(rows) - (ar is not None)
    plot_sweep(output / "sweep.png", rows[:swept], rows[-1] if ar is not None else None)
    show_points(rows)
