"""`difflm bench decode`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from difflm.cli.options import DTYPES, folder
from difflm.cli.sampling import sampling_options

if TYPE_CHECKING:
    from difflm.decode.request import SamplingParams

PROMPTS = (
    "In the beginning",
    "The most important thing about a good night's sleep is",
    "A list of things to pack for a week in the mountains:",
    "Dear Sir or Madam, I am writing to",
    "The difference between a cat and a dog is that",
    "To make bread you need flour, water and",
    "Once upon a time there was an old king who",
    "The capital of France is",
)


@click.command()
@click.argument("model", type=folder())
@click.option(
    "--parent", required=True, type=folder(), show_default="none", help="AR checkpoint that MODEL was made from."
)
@click.option(
    "--prompts",
    type=folder(),
    show_default=f"{len(PROMPTS)} built-in openings",
    help="JSONL file whose `prompt` (or `text`) fields are the prompts; completions in it are not used.",
)
@click.option("--items", type=click.IntRange(min=1), show_default="all", help="First prompts used, items.")
@click.option("--repeats", type=int, default=5, show_default=True, help="Interleaved passes over the prompts.")
@click.option(
    "--trial-prompts", type=int, default=2, show_default=True, help="Prompts of the trial that picks each setting."
)
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=DTYPES,
    default=["float32", "bfloat16"],
    show_default=True,
    help="Type of the weights to try, repeatable.",
)
@click.option(
    "--threads",
    multiple=True,
    type=click.IntRange(1, 1024),
    show_default="1 and all cores this process may use",
    help="CPU threads to try, repeatable.",
)
@sampling_options
def decode(
    model: Path,
    *,
    parent: Path,
    prompts: Path | None,
    items: int | None,
    repeats: int,
    trial_prompts: int,
    dtypes: tuple[str, ...],
    threads: tuple[int, ...],
    params: SamplingParams,
) -> None:
    """Measure MODEL against its AR parent: same prompts, one run, each system at its fastest dtype and threads.

    With a model that drafts, AR, threshold decoding (where MODEL has blocks) and verified decoding stand side by side
    at each dtype: the ratio over the fastest AR system of any dtype and of the same one, drafts by their place, and how
    many answers equal those of a token per forward, which in float32 must be all. --decoding and --policy choose one
    of them, e.g. --policy verified:window=16.

    A table, then one JSON document as the last line of stdout; progress goes to stderr.
    """
    from difflm.bench.decode import bench_decode
    from difflm.bench.report import report

    result = bench_decode(
        model,
        parent,
        read_prompts(prompts)[:items],
        params=params,
        dtypes=dtypes,
        threads=threads or None,
        repeats=repeats,
        trial_prompts=trial_prompts,
        say=lambda line: click.echo(line, err=True),
    )
    report(result)


def read_prompts(path: Path | None) -> list[str]:
    """Return the prompts of a data file, or the built-in ones.

    Raises:
        DataError: a file that cannot be used.
    """
    if path is None:
        return list(PROMPTS)
    from difflm.data.sources import read_documents

    return [document.prompt or document.text or "" for document in read_documents(path)]
