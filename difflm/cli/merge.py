"""`difflm merge`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from difflm.cli.options import folder, fresh_option
from difflm.errors import ConfigError

if TYPE_CHECKING:
    from difflm.training.merge_methods import MergeMethod
    from difflm.training.merging import MergedRun, NotMerged

_OPTION_OF = {"best": "best", "window": "window", "shape": "window", "decay": "ema"}


@click.command()
@click.argument("paths", nargs=-1, required=True, type=folder())
@click.option("--output", type=folder(), show_default="none", help="Absent or empty folder to write.")
@click.option(
    "--method",
    type=click.Choice(["best", "window", "ema"]),
    default="best",
    show_default=True,
    help="Of a run: the checkpoints with the best validation perplexity, the last ones, or a moving average of all.",
)
@click.option("--best", type=int, default=4, show_default=True, help="Checkpoints of --method best.")
@click.option("--window", type=int, default=4, show_default=True, help="Checkpoints of --method window.")
@click.option(
    "--shape",
    type=click.Choice(["linear", "cosine", "sqrt"]),
    default="linear",
    show_default=True,
    help="Learning-rate decay that --method window stands in for; linear weighs all alike.",
)
@click.option("--decay", type=float, default=0.7, show_default=True, help="Share that the average of ema keeps, < 1.")
@click.option("--base", type=folder(), show_default="the one they name", help="Of adapters: the base they belong to.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    show_default="as stored",
    help="Of named checkpoints, of adapters, and of runs of one that only drafts: dtype that is written.",
)
@click.option("--weights", show_default="all alike", help="Of named checkpoints: a number for each, as in 1,1,2.")
@click.option(
    "--compare/--no-compare", default=False, show_default=True, help="Of a run: validate what each method would give."
)
@fresh_option
@click.pass_context
def merge(
    context: click.Context,
    paths: tuple[Path, ...],
    *,
    output: Path | None,
    method: Literal["best", "window", "ema"],
    best: int,
    window: int,
    shape: Literal["linear", "cosine", "sqrt"],
    decay: float,
    weights: str | None,
    base: Path | None,
    dtype: str | None,
    compare: bool,
    fresh: bool,
) -> None:
    """Average checkpoints in float32.

    PATHS is one run folder (checkpoints of its last block size are chosen and the mean is validated), or the
    checkpoints themselves. Adapters, one or several of one base, are merged into it. One that only drafts
    (lora.adapter_rows noisy) stays an adapter: of its run the checkpoint that drafts best, or the one that is named,
    becomes a folder of its own. If it is interrupted, the same command continues after the last finished weight file.
    """
    given = {name for name in (*_OPTION_OF, "method", "compare") if _is_given(context, name)}
    if output is None and not compare:
        raise click.UsageError("Missing option '--output'.")
    from difflm.checkpoints.adapter_config import is_adapter
    from difflm.training.merging import only_drafts

    drafting = next((path for path in paths if only_drafts(path)), None)
    if drafting is not None:
        _refuse_averaging(drafting, len(paths), given | ({"weights"} if weights is not None else set()))
        assert output is not None
        _finish(drafting, output, base=base, dtype=dtype)
        return
    run = paths[0]
    if len(paths) > 1 or (run / "config.json").is_file() or run.is_file() or is_adapter(run):
        for name in sorted(given):
            raise ConfigError(f"--{name}: chooses among a run's checkpoints; leave it out, or name one run folder")
        assert output is not None
        _average(paths, output, weights, base=base, dtype=dtype, fresh=fresh)
        return
    _refuse_for_a_run(base=base, dtype=dtype, weights=weights)
    for name in sorted(given & {*_OPTION_OF}):
        if _OPTION_OF[name] != method and not compare:
            raise ConfigError(f"--{name}: has no meaning for --method {method}; set --method {_OPTION_OF[name]}")
    from difflm.checkpoints.folders import require_free
    from difflm.display import copy_observer
    from difflm.training.merge_methods import Best, Ema, Window
    from difflm.training.merging import compare_merges, merge_run

    if output is not None:
        require_free(output)  # before the comparison, which takes its time
    methods: dict[str, MergeMethod] = {"best": Best(best), "window": Window(window, shape), "ema": Ema(decay)}
    if compare:
        _print_comparison(compare_merges(run, [Window(1), *methods.values()]))
    if output is not None:
        with copy_observer() as observer:
            merged = merge_run(run, output, method=methods[method], fresh=fresh, observer=observer)
        _print_merge(merged, output)


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE


def _refuse_averaging(path: Path, count: int, given: set[str]) -> None:
    """Refuse several of adapters that only draft, and options that choose or weigh what is averaged."""
    if count > 1:
        raise ConfigError(
            f"PATHS: {count} folders, but the adapter of {path} only drafts: it stays an adapter, and the mean of "
            "several is none (the mean of two low-rank products is no low-rank product); name one checkpoint, or "
            "their run, of which the best is taken"
        )
    for name in sorted(given):
        raise ConfigError(
            f"--{name}: is for means of checkpoints, but the adapter of {path} only drafts and is taken from one; "
            "leave it out"
        )


def _refuse_for_a_run(*, base: Path | None, dtype: str | None, weights: str | None) -> None:
    for name, value in (("base", base), ("dtype", dtype)):
        if value is not None:
            raise ConfigError(
                f"--{name}: {value} is for checkpoints and adapters that are named, not for a run; leave it out"
            )
    if weights is not None:
        raise ConfigError("--weights: weighs checkpoints that are named; a run's are weighted by --method")


def _finish(path: Path, output: Path, *, base: Path | None, dtype: str | None) -> None:
    from difflm.checkpoints.adapter_config import is_adapter
    from difflm.checkpoints.adapter_saving import finish_adapter
    from difflm.training.merging import finish_drafting

    if is_adapter(path):
        finish_adapter(path, output, base=base, dtype=dtype)
        click.echo(f"{output}: adapter of {path}")
    else:
        chosen = finish_drafting(path, output, base=base, dtype=dtype)
        click.echo(f"{output}: adapter of {chosen.folder} ({chosen.reason})")


def _average(
    paths: tuple[Path, ...], output: Path, weights: str | None, *, base: Path | None, dtype: str | None, fresh: bool
) -> None:
    from difflm.checkpoints.adapter_config import is_adapter
    from difflm.checkpoints.merge import average_checkpoints
    from difflm.display import copy_observer

    try:
        numbers = None if weights is None else [float(each) for each in weights.split(",")]
    except ValueError:
        raise ConfigError(f"--weights: {weights!r} is no list of numbers; write one for each, as in 1,1,2") from None
    with copy_observer() as observer:
        average_checkpoints(paths, output, weights=numbers, base=base, dtype=dtype, fresh=fresh, observer=observer)
    if not is_adapter(paths[0]):
        click.echo(f"{output}: mean of {len(paths)} checkpoints")
    else:
        what = "adapter" if len(paths) == 1 else f"mean of {len(paths)} adapters"
        click.echo(f"{output}: {what}, merged into the base")


def _print_merge(merged: MergedRun, output: Path) -> None:
    """Print a line for each member and for the mean; warn of a mean that is worse than a member."""
    rows = [(str(each.folder), f"{each.weight:.4f}", _shown(each.perplexity)) for each in merged.members]
    rows.append((f"{output} ({merged.method} of {len(rows)})", "1.0000", _shown(merged.perplexity)))
    _print_table([("checkpoint", "weight", _figure(merged.block_size)), *rows])
    known = [each for each in merged.members if each.perplexity is not None]
    leader = min(known, key=lambda each: each.perplexity or 0.0, default=None)
    if leader is not None and (merged.perplexity or 0.0) > (leader.perplexity or 0.0):
        click.echo(f"the mean is worse than its best member, {leader.folder}; try --method best --best 1", err=True)


def _print_comparison(results: list[MergedRun | NotMerged]) -> None:
    from difflm.training.merging import NotMerged

    merged = [each for each in results if not isinstance(each, NotMerged)]
    size = merged[0].block_size if merged else None
    rows: list[tuple[str, ...]] = [("method", "checkpoints", _figure(size))]
    for index, each in enumerate(results):
        name = "newest" if index == 0 else each.method
        if isinstance(each, NotMerged):
            rows.append((name, "-", f"not possible: {each.reason}"))
        else:
            rows.append((name, f"{len(each.members)}", _shown(each.perplexity)))
    _print_table(rows)


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for *cells, last in rows:
        click.echo("  ".join([*(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)), last]))


def _figure(block_size: int | None) -> str:
    return "AR perplexity" if block_size is None else f"perplexity at block {block_size}"


def _shown(perplexity: float | None) -> str:
    return "not validated" if perplexity is None else f"{perplexity:.4f}"
