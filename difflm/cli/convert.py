"""`difflm convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from difflm.cli.options import DTYPES, folder, fresh_option


@click.command()
@click.argument("source", type=folder())
@click.argument("target", type=folder())
@click.option(
    "--block-size", type=int, default=32, show_default=True, help="Diffusion block that TARGET records, tokens."
)
@click.option(
    "--mask-token",
    metavar="STRING",
    show_default="append <|mask|> after the tokenizer's last id",
    help="Spare token of the tokenizer to reuse as mask.",
)
@click.option(
    "--mask-token-id",
    type=int,
    metavar="ID",
    show_default="the next row",
    help="Id of the mask in a checkpoint without tokenizer.",
)
@click.option(
    "--mask-init",
    type=click.Choice(["mean", "keep"]),
    default="mean",
    show_default=True,
    help="First value of the mask's embedding row: mean of all rows, or as it is.",
)
@click.option(
    "--logit-shift/--no-logit-shift",
    default=False,
    show_default=True,
    help="Whether token i is predicted at row i-1 (as in AR models) or at row i.",
)
@click.option(
    "--clean-attention",
    type=click.Choice(["block", "causal"]),
    default="block",
    show_default=True,
    help="Clean stream: causal by blocks (Eq. 3) or by tokens.",
)
@click.option(
    "--noisy-attention",
    type=click.Choice(["bidirectional", "causal"]),
    default="bidirectional",
    show_default=True,
    help="Attention inside a noisy block.",
)
@click.option("--dtype", type=DTYPES, show_default="as stored; float32 from GGUF", help="Type of the weights on disk.")
@click.option(
    "--licence", metavar="SPDX", show_default="the parent's model card", help="Licence to record in card and config."
)
@click.option("--revision", metavar="COMMIT", show_default="none", help="Commit of SOURCE, if that is a hub id.")
@click.option("--recipe", metavar="TEXT", show_default="none", help="What will train TARGET, recorded as it is.")
@fresh_option
def convert(
    source: Path,
    target: Path,
    *,
    block_size: int,
    mask_token: str | None,
    mask_token_id: int | None,
    mask_init: Literal["mean", "keep"],
    logit_shift: bool,
    clean_attention: Literal["block", "causal"],
    noisy_attention: Literal["bidirectional", "causal"],
    dtype: str | None,
    licence: str | None,
    recipe: str | None,
    revision: str | None,
    fresh: bool,
) -> None:
    """Write a block-diffusion checkpoint made from an AR one.

    SOURCE is a folder with config.json and safetensors, a GGUF file, a folder with one, or a hub id such as org/name
    with --revision; TARGET an absent or empty folder. The weights stay bit for bit, only the mask token's row is new;
    training starts from TARGET. If it is interrupted, the same command continues after the last finished weight file.
    """
    from difflm.checkpoints.convert import convert as convert_checkpoint
    from difflm.display import copy_observer

    with copy_observer() as observer:
        done = convert_checkpoint(
            source,
            target,
            mask_token=mask_token,
            mask_token_id=mask_token_id,
            mask_init=mask_init,
            block_size=block_size,
            logit_shift=logit_shift,
            clean_attention=clean_attention,
            noisy_attention=noisy_attention,
            dtype=dtype,
            licence=licence,
            recipe=recipe,
            revision=revision,
            fresh=fresh,
            observer=observer,
        )
    row = "new embedding row" if done.adds_row else "row that was there"
    if done.left_out:
        layers = sorted({int(name.split(".")[2]) for name in done.left_out})
        named = ", ".join(f"model.layers.{layer}" for layer in layers)
        click.echo(
            f"left out: {len(done.left_out)} tensors of {named} (multi-token prediction, which diffusion has not)"
        )
    click.echo(f"{done.target}: {done.family}, mask token {done.mask_token or ''} id {done.mask_token_id} ({row})")
