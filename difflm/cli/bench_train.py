"""`difflm bench train`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from difflm.models.attention import AttentionBackend


@click.command()
@click.argument("model", default="smollm2-135m")
@click.option(
    "--length",
    "lengths",
    multiple=True,
    type=click.IntRange(min=1),
    default=[512, 1024, 2048, 4096],
    show_default=True,
    help="Row length in tokens, repeatable.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(["split", "flex", "portable", "dense"]),
    show_default="all that can train on the device",
    help="Attention backend, repeatable; ratios refer to the last one.",
)
@click.option("--rows", type=click.IntRange(min=1), default=1, show_default=True, help="Rows of a step.")
@click.option("--documents", type=click.IntRange(min=1), default=1, show_default=True, help="Documents of a row.")
@click.option("--block-size", type=click.IntRange(min=1), default=32, show_default=True, help="Block size in tokens.")
@click.option("--layers", type=click.IntRange(min=0), default=0, show_default="all", help="Decoder layers to keep.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Type of the weights that compute; bfloat16 ones have a float32 master copy.",
)
@click.option("--device", default="cpu", show_default=True, help="Torch device, e.g. cpu or cuda.")
@click.option("--threads", type=click.IntRange(0, 1024), default=0, show_default="all cores", help="CPU threads.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Interleaved steps.")
@click.option("--activation-checkpointing", is_flag=True, help="Recompute each layer in the backward pass.")
@click.option("--memory/--no-memory", default=True, show_default=True, help="Measure peak memory.")
def train(
    model: str,
    *,
    lengths: tuple[int, ...],
    backends: tuple[AttentionBackend, ...],
    rows: int,
    documents: int,
    block_size: int,
    layers: int,
    dtype: str,
    device: str,
    threads: int,
    repeats: int,
    activation_checkpointing: bool,
    memory: bool,
) -> None:
    """Measure training steps of every attention backend: tokens per second, peak memory.

    MODEL is a published shape (smollm2-135m, qwen3-0.6b, llama-3.2-1b), a checkpoint folder or a GGUF file; weights
    are random, so only the shape is read. A table, then one JSON document as the last line of stdout; progress goes to
    stderr.
    """
    from difflm.bench.report import report_training
    from difflm.bench.train import Setting, bench_train

    setting = Setting(
        model=model,
        attention="auto",
        length=lengths[0],
        rows=rows,
        documents=documents,
        block_size=block_size,
        layers=layers,
        dtype=dtype,
        device=device,
        threads=threads,
        activation_checkpointing=activation_checkpointing,
    )
    result = bench_train(
        setting,
        lengths=lengths,
        backends=backends,
        repeats=repeats,
        memory=memory,
        say=lambda line: click.echo(line, err=True),
    )
    report_training(result)
