"""`difflm train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from difflm.cli.options import folder
from difflm.errors import ConfigError

if TYPE_CHECKING:
    from difflm.training.config import TrainConfig


@click.command()
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
@click.option(
    "--resume",
    type=click.Choice(["auto", "never"]),
    default="auto",
    show_default=True,
    help="Go on from the run folder's newest checkpoint, or refuse a folder that is not empty.",
)
@click.option(
    "--dry-run/--run", default=False, show_default=True, help="Whether to print the resolved configuration only."
)
def train(
    recipe: str,
    overrides: tuple[str, ...],
    *,
    model: Path | None,
    data: tuple[Path, ...],
    output: Path | None,
    resume: Literal["auto", "never"],
    dry_run: bool,
) -> None:
    """Run RECIPE: the name of a shipped recipe or a YAML file, e.g. the config.yaml of a run folder.

    Overrides name a field by its dotted path and give it a YAML value: optimizer.learning_rate=1e-4,
    curriculum.0.tokens=50000, data.row_length=512.
    """
    config = resolve(recipe, overrides, model=model, data=data, output=output)
    if dry_run:
        from difflm.training.config_io import dump_config

        click.echo(dump_config(config), nl=False)
        return
    from difflm.display import training_observer
    from difflm.training.trainer import train as run_training

    checkpoint = run_training(config, resume=resume, observer=training_observer())
    click.echo(f"{checkpoint}")


def resolve(
    recipe: str, overrides: tuple[str, ...], *, model: Path | None, data: tuple[Path, ...], output: Path | None
) -> TrainConfig:
    """Return the configuration of a recipe with what the command line adds.

    Raises:
        ConfigError: no such recipe or file, or a field that cannot be used.
    """
    from difflm.training.config_io import config_from_tree, override, read_tree

    found = find_recipe(recipe)
    tree = override({"recipe": found.stem, **read_tree(found)}, overrides)
    if model:
        tree["model"] = str(model)
    if output:
        tree["output"] = str(output)
    if data:
        tree = override(tree, [f"data.paths={json.dumps([str(path) for path in data])}"])
    return config_from_tree(tree)


def find_recipe(name: str) -> Path:
    """Return the file of a recipe given by name or by path.

    Raises:
        ConfigError: neither a shipped recipe nor a file.
    """
    import difflib

    from difflm.recipes import recipe_names, recipe_path

    shipped = recipe_path(name)
    if shipped:
        return shipped
    if Path(name).is_file():
        return Path(name)
    near = difflib.get_close_matches(name, recipe_names(), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"recipe: {name!r} is neither a file nor a shipped recipe{hint} ({', '.join(recipe_names())})")
