"""`difflm bench speed`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from difflm.cli.options import folder, fresh_option


@click.command()
@click.argument("model", default="smollm2-135m")
@click.option(
    "--output",
    required=True,
    type=folder(),
    show_default="none",
    help="Files to write: OUTPUT.jsonl with every finished case, then OUTPUT.json and OUTPUT.md.",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["float32", "bfloat16", "int8"]),
    default=["float32", "bfloat16", "int8"],
    show_default=True,
    help="Weights to try, repeatable.",
)
@click.option(
    "--threads",
    multiple=True,
    type=click.IntRange(1, 1024),
    show_default="1 and all cores this process may use",
    help="CPU threads to try, repeatable.",
)
@click.option(
    "--length",
    "lengths",
    multiple=True,
    type=click.IntRange(min=1),
    default=[64, 256, 1024],
    show_default=True,
    help="New tokens of the comparison with the released loop, repeatable.",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(min=1),
    default=[1, 4, 16, 64],
    show_default=True,
    help="Requests that are decoded together, repeatable.",
)
@click.option("--new-tokens", type=click.IntRange(min=32), default=128, show_default=True, help="Of forced schedules.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Interleaved repeats.")
@click.option(
    "--llama-python",
    show_default="llama.cpp is not measured",
    help="Interpreter that has llama-cpp-python, to measure llama.cpp on MODEL, if that is a GGUF file.",
)
@fresh_option
def speed(
    model: str,
    *,
    output: Path,
    precisions: tuple[str, ...],
    threads: tuple[int, ...],
    lengths: tuple[int, ...],
    batches: tuple[int, ...],
    new_tokens: int,
    repeats: int,
    llama_python: str | None,
    fresh: bool,
) -> None:
    """Measure the decoding engine on CPU under forced schedules, against the released loop and next-token decoding.

    MODEL is a published shape with random weights (smollm2-135m, qwen3-0.6b, llama-3.2-1b), tiny-llada2, a checkpoint
    folder or a GGUF file. An interrupted run goes on with the next case. The report goes to stdout, and one JSON
    document as its last line; progress goes to stderr.
    """
    from difflm.bench.speed import SpeedSettings, bench_speed
    from difflm.bench.speed_report import speed_markdown

    settings = SpeedSettings(
        model=model,
        precisions=precisions,
        threads=threads,
        lengths=lengths,
        batches=batches,
        new_tokens=new_tokens,
        repeats=repeats,
        llama_python=llama_python,
    )
    progress = output.with_name(output.name + ".jsonl")
    result = bench_speed(settings, progress, fresh=fresh, say=lambda line: click.echo(line, err=True))
    text, document = speed_markdown(result), json.dumps(result)
    output.with_name(output.name + ".md").write_text(text, encoding="utf-8")
    output.with_name(output.name + ".json").write_text(document + "\n", encoding="utf-8")
    click.echo(text)
    click.echo(document)
