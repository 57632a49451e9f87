"""`difflm generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from difflm.cli.options import folder, model_options, open_model
from difflm.cli.sampling import sampling_options
from difflm.errors import RequestError

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel
    from difflm.decode.events import Completion
    from difflm.decode.request import SamplingParams


@click.command()
@click.argument("model", type=folder())
@click.option(
    "--prompt", "-p", multiple=True, metavar="TEXT", show_default="one prompt from stdin", help="Prompt, repeatable."
)
@click.option(
    "--chat-template/--plain",
    default=False,
    show_default=True,
    help="Whether a prompt is a user's turn in the model's chat template, or text to go on with.",
)
@click.option("--show/--no-show", default=False, show_default=True, help="Whether to draw each block as it denoises.")
@click.option(
    "--stats/--no-stats", default=True, show_default=True, help="Whether to report forwards and speed on stderr."
)
@sampling_options
@model_options
def generate(
    model: Path,
    *,
    prompt: tuple[str, ...],
    chat_template: bool,
    show: bool,
    stats: bool,
    params: SamplingParams,
    device: str,
    dtype: str,
    threads: int | None,
    revision: str | None,
) -> None:
    """Complete prompts with MODEL. The completions go to stdout, everything else to stderr."""
    prompts = list(prompt) or [read_stdin()]
    loaded = open_model(model, device=device, dtype=dtype, threads=threads, revision=revision)
    encoded = [encode_prompt(loaded, text, chat_template=chat_template) for text in prompts]
    if show:
        from difflm.decode.engine import Engine
        from difflm.display import show_denoising

        engine = Engine(loaded)
        completions = [show_denoising(loaded, engine.stream(each, params)) for each in encoded]
    else:
        from difflm.decode.engine import generate as generate_completions

        completions = generate_completions(loaded, encoded, params)
    for completion in completions:
        if not show:
            click.echo(completion.text)
        if stats:
            click.echo(describe(completion), err=True)


def read_stdin() -> str:
    """Return the prompt on stdin, without the newline at its end.

    Raises:
        RequestError: it is not text.
    """
    try:
        return sys.stdin.read().rstrip("\n")
    except UnicodeDecodeError as error:
        raise RequestError(f"prompt: stdin is not {error.encoding} text ({error.reason}); give UTF-8 text") from None


def encode_prompt(loaded: LoadedModel, text: str, *, chat_template: bool) -> list[int]:
    """Return the token ids of a prompt, plain or as the first turn of a conversation.

    Raises:
        RequestError: an empty prompt.
    """
    if not text:
        raise RequestError("prompt: it is empty; give text with --prompt or on stdin")
    if chat_template:
        return loaded.encode_chat([{"role": "user", "content": text}])
    return loaded.encode(text)


def describe(completion: Completion) -> str:
    """Return one line with what a completion cost."""
    forwards = completion.forwards
    return (
        f"{completion.num_tokens} tokens in {completion.seconds:.1f} s ({completion.tokens_per_second:.1f} tokens/s), "
        f"forwards: {forwards.prefill} prefill, {forwards.denoise} denoise, {forwards.commit} commit, "
        f"{completion.tokens_per_forward:.2f} tokens per forward, ended by {completion.finish_reason}"
    )
