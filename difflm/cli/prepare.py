"""`difflm prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from difflm.cli.options import folder
from difflm.errors import ConfigError

RECORDS = click.Choice(
    ["auto", "text", "prompt_completion", "input_ids", "messages", "sharegpt", "alpaca", "preference"]
)
FORMATS = click.Choice(["auto", "jsonl", "json", "text", "csv", "parquet", "arrow"])


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=folder())
@click.option("--model", required=True, type=folder(), help="Checkpoint whose tokenizer makes the ids.")
@click.option("--output", type=folder(), help="Folder to write; data.paths of a run takes it. Without it only --show.")
@click.option(
    "--weight",
    "weights",
    multiple=True,
    type=float,
    help="Share of a PATH in a mixture, in proportion; repeat it, one for each PATH in order.",
)
@click.option("--format", type=FORMATS, default="auto", show_default="by the first rows", help="Format of the files.")
@click.option("--text-field", default="text", show_default=True, help="Field or column with plain text.")
@click.option(
    "--records",
    type=RECORDS,
    default="auto",
    show_default="by their fields",
    help="What records hold, where their fields leave a choice.",
)
@click.option(
    "--validation-fraction",
    type=float,
    default=0.0,
    show_default=True,
    help="Share of the documents held out, by a hash of their content.",
)
@click.option("--split-seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of that hash.")
@click.option(
    "--drop-duplicates/--keep-duplicates", default=False, show_default=True, help="Whether exact copies are left out."
)
@click.option(
    "--near-threshold",
    type=float,
    default=0.8,
    show_default=True,
    help="Similarity from which documents are reported as nearly the same; 0 does not look.",
)
@click.option("--shard-tokens", type=click.IntRange(1), default=1 << 26, show_default=True, help="Tokens of a shard.")
@click.option("--row-length", type=click.IntRange(2), default=256, show_default=True, help="Row of --show and figures.")
@click.option(
    "--packing",
    type=click.Choice(["best_fit", "greedy"]),
    default="best_fit",
    show_default=True,
    help="Packing of --show; the figures name both.",
)
@click.option("--show", type=click.IntRange(0), default=0, show_default=True, help="Packed rows to print.")
@click.option(
    "--mask-rate", type=float, default=0.5, show_default=True, help="Noise time t of --show: share that is masked."
)
@click.option(
    "--block-size",
    type=click.IntRange(1),
    show_default="the model's",
    help="--show fills answers with EOS to a multiple of it, tokens.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the noise of --show.")
def prepare(paths: tuple[Path, ...], *, output: Path | None, show: int, **settings: Any) -> None:
    """Tokenise files into a folder for training, and report what is in them.

    PATH is a file, a folder or a pattern: JSONL, a JSON array, plain text, CSV, Parquet or Arrow, also with gzip or
    zstd. --show prints packed rows with the role of each token; alone, it reads no further than it has to.
    """
    if output is None and not show:
        raise ConfigError("--output: missing; name the folder to write, or give --show N to look at the first rows")
    from difflm.display.tokens import show_rows, show_summary
    from difflm.training.prepare import prepare as run
    from difflm.training.preview import preview

    of_show = ("mask_rate", "block_size", "packing", "seed")
    common = {name: settings[name] for name in ("model", "format", "text_field", "records", "row_length")}
    if show:
        rows = preview(
            paths,
            rows=show,
            report=click.echo if output is None else None,
            **common,
            **{name: settings[name] for name in of_show},
        )
        show_rows(rows, mask_rate=settings["mask_rate"])
    if output is not None:
        rest = {name: value for name, value in settings.items() if name not in (*of_show, *common)}
        show_summary(run(paths, output=output, report=click.echo, **common, **rest))
