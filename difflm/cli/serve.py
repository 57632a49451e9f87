"""`difflm serve`: a model behind the HTTP interface of chat completions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from difflm.cli.options import folder, model_options, open_model, or_builtin

if TYPE_CHECKING:
    from difflm.models.quantised import Weights


@click.command()
@click.argument("model", type=folder(), required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is every one.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 takes a free one."
)
@click.option("--name", metavar="NAME", show_default="the folder's", help="Name of the model for clients.")
@click.option(
    "--decoding",
    type=click.Choice(["block", "next_token", "verified"]),
    show_default="verified where the model drafts, else block",
    help="Where a request does not say.",
)
@click.option(
    "--policy",
    metavar="NAME[:SETTING=VALUE,...]",
    show_default="native, with these options",
    help="Where a request does not say; see docs/decoding.md.",
)
@click.option("--block-size", type=click.IntRange(1), show_default="the model's", help="Where a request does not say.")
@click.option("--threshold", type=float, show_default="the model's", help="Where a request does not say.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="Where a request does not say.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    default=4096,
    show_default=True,
    help="Longest answer; a request for more is refused. A chat that names no number gets what the context has left.",
)
@click.option(
    "--api-key-file",
    type=folder(),
    metavar="FILE",
    show_default="the keys in DIFFLM_API_KEYS, if any",
    help="Keys, one a line, beside those in DIFFLM_API_KEYS; a request has to bring one of them.",
)
@click.option(
    "--allowed-host",
    multiple=True,
    metavar="NAME",
    show_default="this machine's own names on loopback, else any",
    help="Name in the Host header that is served, repeatable.",
)
@click.option(
    "--cors-origin",
    multiple=True,
    metavar="ORIGIN",
    show_default="none",
    help="Site whose pages may ask from a browser, repeatable.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Of the lines of JSON on stderr; a request is one at info.",
)
@click.option("--max-requests", type=click.IntRange(1), default=64, show_default=True, help="Answers decoded at once.")
@click.option("--max-queue", type=click.IntRange(0), default=256, show_default=True, help="Answers that may wait.")
@click.option(
    "--max-queue-tokens",
    type=click.IntRange(0),
    default=1 << 20,
    show_default=True,
    help="Tokens of their prompts and longest answers.",
)
@click.option("--cache-gib", type=float, default=4.0, show_default=True, help="Keys and values, GiB.")
@click.option(
    "--prefix-caching/--no-prefix-caching",
    default=True,
    show_default=True,
    help="Whether a prompt that begins like an earlier one is not read again; --cache-gib comes to be filled.",
)
@click.option(
    "--telemetry",
    is_flag=True,
    help="A span of OpenTelemetry for each request, without its texts, to where the OTEL_* variables say.",
)
@click.option("--grace", type=float, default=30.0, show_default=True, help="Seconds for running answers at SIGTERM.")
@model_options
def serve(
    model: Path | None,
    *,
    device: str,
    dtype: str,
    weights: Weights,
    threads: int | None,
    revision: str | None,
    **options: Any,
) -> int:
    """Serve MODEL to clients of /v1/chat/completions and /v1/completions; without MODEL, a small one that is built in.

    A model that drafts is decoded left to right in fewer forwards (decoding verified), and the text is its base's.
    """
    from difflm.builtin import NAME
    from difflm.serving.logs import write_logs
    from difflm.serving.setup import Options, served

    chosen = Options(**options)
    chosen.check()
    write_logs(sys.stderr, chosen.log_level)
    place, questions = or_builtin(model)
    loaded = open_model(place, device=device, dtype=dtype, weights=weights, threads=threads, revision=revision)
    return served(
        loaded,
        chosen,
        fallback_name=NAME if model is None else model.resolve().name,
        say=lambda line: click.echo(line, err=True),
        questions=questions,
    ).run()
