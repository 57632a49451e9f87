"""`difflm chat`: a conversation on the terminal, with a model or a server, each block drawn as it denoises."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from difflm.cli.generate import chosen_decoding, describe
from difflm.cli.options import folder, model_options, open_model, or_builtin
from difflm.cli.sampling import sampling_options
from difflm.errors import ConfigError, DifflmError

if TYPE_CHECKING:
    from difflm.chat.commands import Views
    from difflm.chat.session import Asked, Backend, Session, Show
    from difflm.chat.settings import Settings
    from difflm.decode.events import Completion
    from difflm.decode.recorder import StepMap
    from difflm.decode.request import SamplingParams
    from difflm.models.quantised import Weights

_LOCAL = ("device", "dtype", "weights", "threads", "revision")
"""Options that say where a model runs."""


@click.command()
@click.argument("model", type=folder(), required=False)
@click.option(
    "--server",
    metavar="URL",
    show_default="none: MODEL is loaded here",
    help="Server of chat completions to talk to; MODEL is then the name of a model there, if it has several.",
)
@click.option(
    "--api-key",
    metavar="KEY",
    envvar="DIFFLM_API_KEY",
    show_default="the variable DIFFLM_API_KEY, if it is set",
    help="Key that the server asks for; what stands on a command line can be seen by others.",
)
@click.option("--system", metavar="TEXT", show_default="none", help="Instructions for the whole conversation.")
@click.option(
    "--show/--no-show",
    default=True,
    show_default=True,
    help="Whether to draw each block as it denoises, and drafts until they are verified.",
)
@sampling_options
@model_options
@click.pass_context
def chat(
    context: click.Context,
    model: Path | None,
    *,
    server: str | None,
    api_key: str | None,
    system: str | None,
    show: bool,
    params: SamplingParams,
    device: str,
    dtype: str,
    weights: Weights,
    threads: int | None,
    revision: str | None,
) -> None:
    """Talk to MODEL, to a server, or without either to a small model that is built in.

    A model's chat template is used if it has one, else each line is a prompt.

    /help lists commands. A model that drafts is decoded left to right in fewer forwards (decoding verified), and the
    text is its base's; a line says so, and the line below each answer says how many drafts were accepted.
    """
    from difflm.chat.session import Session

    chosen = given_settings(context)
    with contextlib.ExitStack() as closing:
        if server is not None:
            _refuse_local(context)
            from difflm.chat.remote import ServerBackend

            remote = ServerBackend(server, key=api_key, model=None if model is None else str(model))
            closing.callback(remote.close)
            backend: Backend = remote
            questions = remote.questions
            click.echo(f"{remote.model} at {remote.address}", err=True)
        else:
            from difflm.chat.local import LocalBackend

            place, questions = or_builtin(model)
            loaded = open_model(place, device=device, dtype=dtype, weights=weights, threads=threads, revision=revision)
            local = LocalBackend(loaded)
            backend = local
            if not local.templated:
                click.echo("no chat template: each line is a prompt of its own", err=True)
            if line := chosen_decoding(loaded, params):
                click.echo(line, err=True)
        session = Session(backend, shower(show=show), chosen, questions=questions)
        if system:
            session.system(system)
        first = "/try asks a question that suits the model, " if questions else ""
        click.echo(f"{first}/help lists commands, /exit leaves", err=True)
        talk(session)


def given_settings(context: click.Context) -> Settings:
    """Return the decoding options that were given on the command line.

    Raises:
        ConfigError: one that means nothing in a conversation.
    """
    from difflm.chat.settings import NAMES, Settings
    from difflm.decode.request import SamplingParams

    given: dict[str, Any] = {}
    for name in (each.name for each in dataclasses.fields(SamplingParams) if each.name in context.params):
        if _chosen(context, name):
            if name not in NAMES:
                raise ConfigError(f"--{name.replace('_', '-')}: it means nothing in a conversation; leave it out")
            value = context.params[name]
            given[name] = dict(value) if name == "logit_bias" else value
    return Settings(given)


def _chosen(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def _refuse_local(context: click.Context) -> None:
    """Refuse options that say where a model runs."""
    for name in _LOCAL:
        if _chosen(context, name):
            raise ConfigError(f"--{name}: a server runs the model itself; leave it out beside --server")


def shower(*, show: bool) -> Show:
    """Return what shows an answer: its blocks as they denoise, or the text at the end."""
    from difflm.display import Canvas, show_events

    def shown(asked: Asked) -> Completion:
        with contextlib.closing(asked.events):
            if show:
                return show_events(Canvas(asked.decode, asked.decode_all), asked.events)
            *_, last = asked.events
            completion: Completion = last.completion  # pyright: ignore[reportAttributeAccessIssue]
            click.echo(completion.text)
            return completion

    return shown


def views() -> Views:
    """Return what becomes of results."""
    from difflm.chat.commands import Views
    from difflm.display import replay_steps, step_lines

    def replay(step_map: StepMap) -> None:
        replay_steps(step_map)

    return Views(cost=cost, trace=step_lines, replay=replay, ask=lambda question: click.echo(question, err=True))


def cost(completion: Completion) -> str:
    """Return one line with what an answer cost, as far as that is known."""
    from difflm.decode.events import Forwards

    if completion.forwards != Forwards():
        return describe(completion)
    return f"{completion.num_tokens} tokens in {completion.seconds:.1f} s, ended by {completion.finish_reason}"


def talk(session: Session) -> None:
    """Read messages until the input ends."""
    from difflm.chat.commands import answer
    from difflm.chat.lines import Reader

    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            # Line editing and history for input().
            importlib.import_module("readline")
    prompts = ("> ", ". ") if terminal else ("", "")
    reader, seen = Reader(lambda goes_on: input(prompts[goes_on])), views()
    while True:
        try:
            printed = answer(session, reader.read(), seen)
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise ConfigError(f"stdin: it is not {error.encoding} text ({error.reason}); give UTF-8 text") from None
        except KeyboardInterrupt:
            printed = "stopped"
        except (DifflmError, OSError) as error:
            printed = str(error)
        if printed is None:
            return
        if printed:
            click.echo(printed, err=True)
