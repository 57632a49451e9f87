"""`difflm train`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from difflm.cli.options import folder, tokens_option


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option("--model", type=folder(), show_default="the recipe's", help="Converted checkpoint; short for model=.")
@click.option(
    "--data",
    multiple=True,
    type=folder(),
    show_default="the recipe's",
    help="Training file, folder or pattern, repeatable; short for data.paths=.",
)
@click.option("--output", type=folder(), show_default="the recipe's", help="Run folder; short for output=.")
@tokens_option
@click.option(
    "--resume",
    type=click.Choice(["auto", "never"]),
    default="auto",
    show_default=True,
    help="Go on from the run folder's newest checkpoint, or refuse a folder that is not empty.",
)
@click.option(
    "--dry-run/--run",
    default=False,
    show_default=True,
    help="Whether to print only the resolved configuration and what the run will cost.",
)
def train(
    recipe: str,
    overrides: tuple[str, ...],
    *,
    model: Path | None,
    data: tuple[Path, ...],
    output: Path | None,
    tokens: int | None,
    resume: Literal["auto", "never"],
    dry_run: bool,
) -> None:
    """Run RECIPE: a name that `difflm recipes` lists, a YAML file (the config.yaml of a run), or MODULE:FUNCTION.

    Overrides name a field by its dotted path and give it a YAML value: optimizer.learning_rate=1e-4,
    curriculum.0.tokens=50000, data.row_length=512. --optimizer.learning_rate=1e-4 is the same.
    """
    from difflm.recipes.resolving import resolve

    # An override with dashes may stand before the recipe.
    words = [recipe, *overrides]
    first = next((index for index, word in enumerate(words) if not word.startswith("--")), None)
    if first is None:
        raise click.UsageError("Missing argument 'RECIPE'.")
    chosen = words.pop(first)
    config = resolve(chosen, words, model=model, data=data, output=output, tokens=tokens)
    if dry_run:
        from difflm.cli.estimate import commented_estimate
        from difflm.training.config_io import dump_config

        click.echo(dump_config(config) + commented_estimate(config), nl=False)
        return
    from difflm.display import training_observer
    from difflm.runs import train as run_training

    checkpoint = run_training(config, resume=resume, observer=training_observer())
    click.echo(f"{checkpoint}")
