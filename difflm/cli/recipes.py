"""`difflm recipes`."""

from __future__ import annotations

import click


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(context: click.Context) -> None:
    """List the shipped recipes, one per line; `difflm recipes show NAME` prints one."""
    if context.invoked_subcommand is not None:
        return
    from difflm.recipes.shipped import recipe_names, recipe_summary

    names = recipe_names()
    width = max(map(len, names))
    for name in names:
        click.echo(f"{name:<{width}}  {recipe_summary(name)}")


@recipes.command()
@click.argument("name")
def show(name: str) -> None:
    """Print the YAML of recipe NAME, comments included; a copy of it is a recipe of your own."""
    from difflm.recipes.resolving import find_recipe

    click.echo(find_recipe(name).read_text(encoding="utf-8"), nl=False)
