"""`difflm inspect mask`, `difflm inspect row`, `difflm inspect keys`, `difflm inspect steps`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from difflm.cli.options import folder
from difflm.errors import ConfigError

if TYPE_CHECKING:
    from difflm.training.preview import ShownRow
    from difflm.types import BlockOrigin, CleanAttention, NoisyAttention, Parametrisation

MODEL_HELP = "Checkpoint whose tokenizer makes the ids and whose block size and attention are the defaults."
ORIGIN = click.Choice(["document", "row"])


@click.command()
@click.argument("path", required=False, type=folder())
@click.option("--model", type=folder(), show_default="none", help=MODEL_HELP)
@click.option("--row", "number", type=click.IntRange(0), default=0, show_default=True, help="Packed row of PATH drawn.")
@click.option(
    "--documents", metavar="N,N,...", show_default="5,3", help="Without PATH: tokens of each document in the row."
)
@click.option("--row-length", type=click.IntRange(2), show_default="8, of PATH 32", help="Tokens in a row.")
@click.option("--block-size", type=click.IntRange(1), show_default="the model's, or 4", help="Block size in tokens.")
@click.option("--one-block", is_flag=True, help="One block for each document instead (MDLM).")
@click.option(
    "--streams",
    type=click.Choice(["two", "one"]),
    default="two",
    show_default=True,
    help="[noisy | clean], or noisy rows alone.",
)
@click.option("--clean-attention", type=click.Choice(["block", "causal"]), show_default="the model's, or block")
@click.option(
    "--noisy-attention", type=click.Choice(["bidirectional", "causal"]), show_default="the model's, or bidirectional"
)
@click.option("--lookahead", type=click.IntRange(0), show_default="all", help="Positions ahead seen inside a block.")
@click.option("--block-origin", type=ORIGIN, default="document", show_default=True, help="Where blocks begin to count.")
@click.option("--ascii", "plain", is_flag=True, help="Letters instead of shaded cells.")
def mask(
    path: Path | None,
    *,
    model: Path | None,
    number: int,
    documents: str | None,
    row_length: int | None,
    block_size: int | None,
    one_block: bool,
    streams: str,
    clean_attention: CleanAttention | None,
    noisy_attention: NoisyAttention | None,
    lookahead: int | None,
    block_origin: BlockOrigin,
    plain: bool,
) -> None:
    """Draw who sees whom: of a made-up row, or of a packed row of the data file PATH."""
    from difflm.inspection import ASCII, UNICODE, document_ids, layout_of, mask_lines, row_documents

    parametrisation, size = _defaults(model, clean_attention, noisy_attention, block_size)
    if path is None:
        document = document_ids(_lengths(documents or "5,3"), row_length or max(sum(_lengths(documents or "5,3")), 8))
    elif documents is not None:
        raise ConfigError("--documents: stands beside a data file; give one of the two")
    else:
        document = row_documents(_rows(path, model, number, row_length or 32, size, mask_rate=0.0)[number])
    layout = layout_of(
        document,
        block_size=None if one_block else size,
        parametrisation=parametrisation,
        two_streams=streams == "two",
        lookahead=lookahead,
        origin=block_origin,
    )
    for line in mask_lines(layout, glyphs=ASCII if plain or not _shows(UNICODE.earlier) else UNICODE):
        click.echo(line)


@click.command()
@click.argument("path", type=folder())
@click.option("--model", required=True, type=folder(), help=MODEL_HELP)
@click.option("--row", "number", type=click.IntRange(0), default=0, show_default=True, help="Packed row of PATH shown.")
@click.option("--row-length", type=click.IntRange(2), default=64, show_default=True, help="Tokens in a row.")
@click.option("--block-size", type=click.IntRange(1), show_default="the model's, or 4", help="Block size in tokens.")
@click.option("--mask-rate", type=float, default=0.5, show_default=True, help="Noise time t: share that is masked.")
@click.option("--block-origin", type=ORIGIN, default="document", show_default=True, help="Where blocks begin to count.")
def row(
    path: Path,
    *,
    model: Path,
    number: int,
    row_length: int,
    block_size: int | None,
    mask_rate: float,
    block_origin: BlockOrigin,
) -> None:
    """Show a packed row of the data file PATH: documents, positions, blocks, roles, masks."""
    from difflm.inspection import row_lines

    _, size = _defaults(model, None, None, block_size)
    shown = _rows(path, model, number, row_length, size, mask_rate=mask_rate)[number]
    for line in row_lines(shown, block_size=size, origin=block_origin):
        click.echo(line)


@click.command()
@click.argument("checkpoint", type=folder())
@click.option("--every-layer", is_flag=True, help="A line for each layer.")
@click.option("--revision", metavar="COMMIT", show_default="none", help="Commit of CHECKPOINT, if a hub id.")
def keys(checkpoint: Path, *, every_layer: bool, revision: str | None) -> None:
    """Show where each tensor of CHECKPOINT goes: names and shapes on disk -> ours, and what changes in between."""
    from difflm.inspection import key_map_lines

    for line in key_map_lines(checkpoint, every_layer=every_layer, revision=revision):
        click.echo(line)


@click.command()
@click.argument("path", metavar="FILE", type=folder())
@click.option("--request", "number", type=click.IntRange(0), default=0, show_default=True, help="Line of FILE shown.")
@click.option("--plot", type=folder(), metavar="PNG", show_default="none", help="Picture to write: order, confidence.")
@click.option("--replay", is_flag=True, help="Draw the decoding once more, forward by forward.")
@click.option(
    "--pause", type=click.FloatRange(0), default=0.2, show_default=True, help="Between forwards of a replay, seconds."
)
def steps(path: Path, *, number: int, plot: Path | None, replay: bool, pause: float) -> None:
    """Show which forward decided what, of an answer in FILE that generate --step-map wrote."""
    from difflm.decode.recorder import read_step_maps
    from difflm.display import replay_steps, step_lines

    maps = read_step_maps(path)
    if number >= len(maps):
        raise ConfigError(f"--request: {number}; {path} holds {len(maps)} answers, the first is 0; use a lower one")
    chosen = maps[number]
    if replay:
        replay_steps(chosen, seconds=pause)
    else:
        for line in step_lines(chosen):
            click.echo(line)
    if plot is not None:
        from difflm.plots_decoding import plot_steps

        cells = chosen.cells()
        plot_steps(
            plot,
            block_size=chosen.block_size,
            steps=[cell.step for cell in cells],
            confidences=[cell.confidence for cell in cells],
            edits=[cell.edits for cell in cells],
            title=f"{path.name}, answer {number}: {chosen.completion.tokens_per_forward:.2f} tokens per forward",
        )


def _shows(character: str) -> bool:
    """Return whether stdout can write a character."""
    try:
        character.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _lengths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--documents: {text!r} is no list of numbers; write e.g. 5,3") from None


def _defaults(
    model: Path | None, clean: CleanAttention | None, noisy: NoisyAttention | None, block_size: int | None
) -> tuple[Parametrisation, int]:
    """Return attention and block size: as asked for, else the model's, else the paper's and 4."""
    from difflm.checkpoints.loading import load_without_weights
    from difflm.types import Parametrisation

    config = load_without_weights(model).config if model else None
    own = config.parametrisation if config else Parametrisation()
    recorded = config.block_size if config else None
    return (
        Parametrisation(
            logit_shift=own.logit_shift,
            clean_attention=clean or own.clean_attention,
            noisy_attention=noisy or own.noisy_attention,
        ),
        block_size or recorded or 4,
    )


def _rows(
    path: Path, model: Path | None, number: int, row_length: int, block_size: int, *, mask_rate: float
) -> list[ShownRow]:
    """Return the packed rows of a file up to one of them."""
    from difflm.training.preview import preview

    if model is None:
        raise ConfigError(f"--model: missing; name the checkpoint whose tokenizer reads {path}")
    fill = block_size if row_length % block_size == 0 else 1
    shown = preview([path], model=model, rows=number + 1, mask_rate=mask_rate, row_length=row_length, block_size=fill)
    if number >= len(shown):
        raise ConfigError(f"--row: {number}; {path} packs into {len(shown)} rows of {row_length} here; use a lower one")
    return shown
