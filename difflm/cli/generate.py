"""`difflm generate`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from difflm.cli.constraining import constraint_options
from difflm.cli.options import folder, model_options, open_model
from difflm.cli.sampling import sampling_options
from difflm.errors import RequestError

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel
    from difflm.decode.events import Completion
    from difflm.decode.request import SamplingParams
    from difflm.models.quantised import Weights


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
@click.option(
    "--show/--no-show",
    default=False,
    show_default=True,
    help="Whether to draw each block as it denoises, and drafts until they are verified.",
)
@click.option(
    "--step-map",
    type=folder(),
    metavar="FILE",
    show_default="none",
    help="JSONL file to which a line is added for each answer: what each forward decided; see inspect steps.",
)
@click.option(
    "--stats/--no-stats", default=True, show_default=True, help="Whether to report forwards and speed on stderr."
)
@constraint_options
@sampling_options
@model_options
def generate(
    model: Path,
    *,
    prompt: tuple[str, ...],
    chat_template: bool,
    show: bool,
    step_map: Path | None,
    stats: bool,
    params: SamplingParams,
    device: str,
    dtype: str,
    weights: Weights,
    threads: int | None,
    revision: str | None,
) -> None:
    """Complete prompts with MODEL. The completions go to stdout, everything else to stderr.

    A model that drafts (an adapter for mask rows, or a generation_config.json with decoding verified) is decoded left
    to right in fewer forwards, and the text is its base's; a line on stderr says so. --decoding and --policy choose
    otherwise, e.g. --policy verified:window=8,fallback=false.

    With --json, --json-schema, --regex or --grammar an answer that ends by itself matches, and one that
    --max-new-tokens ends is the beginning of a match: give enough of them.
    """
    prompts = list(prompt) or [read_stdin()]
    loaded = open_model(model, device=device, dtype=dtype, weights=weights, threads=threads, revision=revision)
    encoded = [encode_prompt(loaded, text, chat_template=chat_template) for text in prompts]
    if stats and (line := chosen_decoding(loaded, params)):
        click.echo(line, err=True)
    if step_map is not None:
        completions = _recorded(loaded, encoded, params, path=step_map, show=show)
    elif show:
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
        if params.constraint is not None and completion.finish_reason == "stuck":
            click.echo("constraint: the answer could not go on; what there is begins a match", err=True)


def _recorded(
    loaded: LoadedModel, prompts: list[list[int]], params: SamplingParams, *, path: Path, show: bool
) -> list[Completion]:
    """Decode as without a file, and write a step map of each answer."""
    from difflm.decode.engine import Engine, seeds
    from difflm.decode.events import Finished
    from difflm.decode.recorder import append_step_maps, recorder_of
    from difflm.display import show_denoising

    engine = Engine(loaded)
    path.touch()  # a file that cannot be written is said before the work
    if show:
        recorders = [recorder_of(loaded, each, params) for each in prompts]
        completions = [
            show_denoising(loaded, recorder.watching(engine.stream(each, params)))
            for recorder, each in zip(recorders, prompts, strict=True)
        ]
    else:
        alone = [dataclasses.replace(params, n=1, seed=seed) for seed in seeds(params)]
        requests = {engine.submit(each, one): recorder_of(loaded, each, one) for each in prompts for one in alone}
        finished: dict[int, Completion] = {}
        while len(finished) < len(requests):
            for event in engine.step():
                requests[event.request_id].apply(event)
                if isinstance(event, Finished):
                    finished[event.request_id] = event.completion
        recorders = list(requests.values())
        completions = [finished[number] for number in requests]
    append_step_maps(path, [recorder.map for recorder in recorders])
    return completions


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
    """Return one line with what a completion cost, and what became of its drafts."""
    forwards, drafts = completion.forwards, completion.drafts
    verified = ""
    if drafts is not None and drafts.cycles:
        each = f" of {drafts.tokens_per_cycle:.2f} tokens" if drafts.tokens else ""  # a server does not tell
        verified = f"drafts: {drafts.accepted} of {drafts.drafted} accepted in {drafts.cycles} cycles{each}, "
    return (
        f"{completion.num_tokens} tokens in {completion.seconds:.1f} s ({completion.tokens_per_second:.1f} tokens/s), "
        f"forwards: {forwards.prefill} prefill, {forwards.denoise} denoise, {forwards.commit} commit, "
        f"{completion.tokens_per_forward:.2f} tokens per forward, {verified}ended by {completion.finish_reason}"
    )


def chosen_decoding(loaded: LoadedModel, params: SamplingParams) -> str | None:
    """Return a line about a left-to-right decoding that the model chose; None where the user did, or for blocks.

    Args:
        loaded: the model.
        params: as asked for.
    """
    from difflm.decode.admission import decoding_for
    from difflm.decode.policies.verified import EXACT

    if params.decoding is not None or params.policy is not None:
        return None
    chosen = decoding_for(loaded, params)
    if chosen == "block":
        return None
    by = "generation_config.json says so" if loaded.config.generation.get("decoding") else "the model's adapter drafts"
    if chosen == "next_token":
        return f"decoding: next_token, as {by}"
    gated = loaded.model.adapter_gate == "noisy"
    whose = f"the text is that of the base {loaded.path}" if gated else "the text is that of the weights left to right"
    dtype = str(loaded.model.embedding.weight.dtype).removeprefix("torch.")
    near = "" if dtype in EXACT else f", up to near-ties in {dtype}"
    return f"decoding: verified, as {by}; {whose}{near} (--decoding next_token writes it without drafts)"
