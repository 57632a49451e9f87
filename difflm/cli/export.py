"""`difflm export`."""

from __future__ import annotations

from pathlib import Path

import click

from difflm.cli.options import DTYPES, folder, fresh_option


@click.command()
@click.argument("source", type=folder())
@click.argument("target", type=folder())
@click.option(
    "--format",
    type=click.Choice(["hf", "stacked", "sdar"]),
    default="hf",
    show_default=True,
    help="Layout: the family's own with experts one by one, experts stacked for dFactory, or SDAR's class.",
)
@click.option(
    "--engine",
    type=click.Choice(["sglang", "lmdeploy", "dinfer", "vllm"]),
    show_default="none",
    help="Refuse unless this engine serves the result.",
)
@click.option("--dtype", type=DTYPES, show_default="as stored", help="Type of the weights on disk.")
@click.option("--revision", metavar="COMMIT", show_default="none", help="Commit of SOURCE, if that is a hub id.")
@fresh_option
def export(
    source: Path, target: Path, *, format: str, engine: str | None, dtype: str | None, revision: str | None, fresh: bool
) -> None:
    """Write a checkpoint in the layout that another program loads.

    SOURCE is a checkpoint, TARGET an absent or empty folder. Weights, tokenizer, chat template and licence stay as
    they are. The launch command of each engine that serves TARGET is printed, and why another does not. If it is
    interrupted, the same command continues after the last finished weight file.

    A model that writes left to right as well (clean_attention causal) gets its parent's class in format hf, for that
    use. An adapter that only drafts is refused, as no weights can hold it: export its base.
    """
    from difflm.checkpoints.export import export as export_checkpoint
    from difflm.display import copy_observer

    with copy_observer() as observer:
        done = export_checkpoint(
            source,
            target,
            format=format,
            engine=engine,
            dtype=dtype,
            revision=revision,
            fresh=fresh,
            observer=observer,
        )
    click.echo(f"{done.target}: {done.family}, format {format}")
    if done.note is not None:
        click.echo(done.note)
    for name, command in done.commands.items():
        click.echo(f"{name}: {command}")
    for name, reasons in done.refused.items():
        click.echo(f"{name}: no, {'; '.join(reasons)}")
