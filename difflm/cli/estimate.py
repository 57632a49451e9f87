"""`difflm estimate`, and what `difflm train --dry-run` says about the cost of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from difflm.cli.options import folder, tokens_option
from difflm.errors import DifflmError

if TYPE_CHECKING:
    from difflm.training.config import TrainConfig


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option(
    "--model",
    show_default="the recipe's",
    help="Checkpoint folder (its config.json is enough) or name of a published architecture; short for model=.",
)
@click.option(
    "--data",
    multiple=True,
    type=folder(),
    show_default="the recipe's",
    help="Training file, folder or pattern, repeatable; read to find how full rows get.",
)
@tokens_option
@click.option(
    "--fill",
    type=click.FloatRange(0, 1, min_open=True),
    show_default="measured on the data, 1 without it",
    help="Share of row positions that hold a token.",
)
@click.option(
    "--tflops",
    type=click.FloatRange(0, min_open=True),
    show_default="measured on this machine",
    help="What the machine of the run sustains, 1e12 operations per second.",
)
@click.option(
    "--measure/--no-measure",
    default=True,
    show_default=True,
    help="Whether to run a few steps on few layers, which gives the time and what the allocator adds.",
)
@click.option("--json/--table", "as_json", default=False, show_default=True, help="Print JSON, or a table.")
def estimate(
    recipe: str,
    overrides: tuple[str, ...],
    *,
    model: str | None,
    data: tuple[Path, ...],
    tokens: int | None,
    fill: float | None,
    tflops: float | None,
    measure: bool,
    as_json: bool,
) -> None:
    """Say what a run will cost, in steps, memory and time, from its RECIPE or config.yaml; nothing is trained.

    No weights and no data are needed: --model names an architecture or a folder with config.json. The time is measured
    with a few steps on few layers, on the device that the configuration names.
    """
    from difflm.estimate.run import estimate as estimate_run
    from difflm.estimate.run import estimate_lines, estimate_tree
    from difflm.recipes.resolving import resolve
    from difflm.recipes.shipped import recipe_path

    # A shipped recipe names neither data nor output, and an estimate needs none.
    if not data and recipe_path(recipe) and not any("data.paths" in each for each in overrides):
        data = (Path("data"),)
    config = resolve(recipe, list(overrides), model=model, data=data, output=Path("run"), tokens=tokens)
    found = estimate_run(config, fill=fill, measured=measure, tflops=tflops)
    if as_json:
        click.echo(json.dumps(estimate_tree(found), indent=1))
    else:
        click.echo("\n".join(estimate_lines(found)))


def commented_estimate(config: TrainConfig) -> str:
    """Return the estimate of a run as YAML comments; what stands in its way is said there too.

    Args:
        config: the run.
    """
    from difflm.estimate.run import estimate as estimate_run
    from difflm.estimate.run import estimate_lines

    try:
        lines = estimate_lines(estimate_run(config))
    except DifflmError as error:
        lines = [f"no estimate: {error}"]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)
