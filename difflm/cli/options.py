"""Options that several commands share: where a model runs, and how it decodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel
    from difflm.models.quantised import Weights

Decorated = Callable[..., Any]

DTYPES = click.Choice(["float32", "bfloat16"])


class _PathType(click.Path):
    """A path that is not empty: an empty one would silently mean the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if value == "":
            self.fail("the path is empty; give a file or folder ('.' is the current one)", param, ctx)
        return super().convert(value, param, ctx)


def folder(**settings: Any) -> click.Path:
    """Return the type of a path argument; whether it is usable is checked, and said, by what reads it."""
    return _PathType(path_type=Path, **settings)


def tokens_option(command: Decorated) -> Decorated:
    """Add --tokens, the length of a run, to a command that takes a recipe."""
    option = click.option(
        "--tokens",
        type=click.IntRange(min=1),
        show_default="the recipe's",
        help="Length of the run, tokens; every token count of the recipe is scaled to it.",
    )
    return option(command)


def fresh_option(command: Decorated) -> Decorated:
    """Add --fresh to a command that continues an interrupted attempt."""
    option = click.option(
        "--fresh",
        is_flag=True,
        show_default="off",
        help="Throw away what an interrupted attempt at the same folder left, instead of continuing it.",
    )
    return option(command)


def model_options(command: Decorated) -> Decorated:
    """Add --device, --dtype, --weights, --threads and --revision to a command."""
    for option in reversed(
        [
            click.option("--device", default="cpu", show_default=True, help="Torch device, e.g. cpu or cuda."),
            click.option("--dtype", type=DTYPES, default="float32", show_default=True, help="Type of the weights."),
            click.option(
                "--weights",
                type=click.Choice(["float", "int8"]),
                default="float",
                show_default=True,
                help="Linear maps in --dtype, or in 8-bit integers (dense models on CPU; the rest stays in --dtype).",
            ),
            click.option(
                "--threads",
                type=click.IntRange(1, 1024),
                show_default="all cores this process may use",
                help="CPU threads.",
            ),
            click.option("--revision", metavar="COMMIT", show_default="none", help="Commit of MODEL, if a hub id."),
        ]
    ):
        command = option(command)
    return command


def or_builtin(model: Path | None) -> tuple[Path, tuple[str, ...]]:
    """Return a model, or the one that comes with the package, which is said on stderr; and questions that suit it."""
    if model is not None:
        return model, ()
    from difflm.builtin import builtin_model, examples

    click.echo("no MODEL was given: this is the one that comes with difflm; it answers small puzzles alone", err=True)
    return builtin_model(), tuple(each.question for each in examples())


def open_model(
    path: Path,
    *,
    device: str,
    dtype: str,
    threads: int | None,
    weights: Weights = "float",
    revision: str | None = None,
) -> LoadedModel:
    """Return the model in `path` (or of a hub id, at a commit), on `threads` CPU threads.

    Raises:
        CheckpointError: a folder that cannot be read.
        ConfigError: a device that torch does not know, a revision that is no commit, or weights that do not work there.
    """
    import torch

    from difflm.checkpoints.loading import check_device, load_model

    if threads:
        torch.set_num_threads(threads)
    check_device(device, field="--device")
    return load_model(path, device=device, dtype=dtype, weights=weights, revision=revision)
