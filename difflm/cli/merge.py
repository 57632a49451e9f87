"""`difflm merge`."""

from __future__ import annotations

from pathlib import Path

import click

from difflm.cli.options import folder


@click.command()
@click.argument("paths", nargs=-1, required=True, type=folder())
@click.option("--output", required=True, type=folder(), show_default="none", help="Absent or empty folder to write.")
@click.option(
    "--best",
    type=int,
    default=4,
    show_default=True,
    help="Of a run: how many checkpoints of the last block size, by validation perplexity.",
)
def merge(paths: tuple[Path, ...], *, output: Path, best: int) -> None:
    """Average checkpoints in float32.

    PATHS is one run folder (its best checkpoints are chosen and the mean is validated), or the checkpoints themselves.
    """
    if len(paths) == 1 and not (paths[0] / "config.json").is_file():
        from difflm.training.merging import merge_run

        merged = merge_run(paths[0], output, best=best)
        name = "AR perplexity" if merged.block_size is None else f"perplexity at block {merged.block_size}"
        for path, figure in merged.members:
            click.echo(f"{path}: {name} {figure:.3f}")
        click.echo(f"{output}: {name} {merged.perplexity:.3f} (mean of {len(merged.members)})")
        if merged.perplexity > merged.members[0][1]:
            click.echo(f"the mean is worse than its best member, {merged.members[0][0]}; try --best 1", err=True)
        return
    from difflm.checkpoints.merge import average_checkpoints

    average_checkpoints(paths, output)
    click.echo(f"{output}: mean of {len(paths)} checkpoints")
