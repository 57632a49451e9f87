"""`difflm chat`: a conversation on the terminal, each block drawn as it denoises."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from difflm.cli.generate import chosen_decoding, describe, encode_prompt
from difflm.cli.options import folder, model_options, open_model
from difflm.cli.sampling import sampling_options
from difflm.errors import DifflmError, RequestError

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel
    from difflm.decode.events import Completion
    from difflm.decode.request import SamplingParams
    from difflm.models.quantised import Weights

HELP = """/retry            answer the last message again (another seed at temperature > 0)
/undo             forget the last exchange
/system TEXT      start anew with instructions
/set FIELD VALUE  change a sampling parameter, e.g. /set threshold 0.9; /set alone lists them
/save FILE        write the conversation as one JSON line
/quit             leave (also end of input); Ctrl+C stops an answer"""

Reply = Callable[[list[int], "SamplingParams"], "Completion"]


@dataclass(slots=True)
class Conversation:
    """What has been said, and how to answer; knows no terminal.

    Attributes:
        loaded: the model.
        params: how answers are decoded.
        reply: decodes a prompt, drawing it or not.
        messages: turns so far, objects with "role" and "content".
    """

    loaded: LoadedModel
    params: SamplingParams
    reply: Reply
    messages: list[dict[str, str]] = field(default_factory=list)

    @property
    def templated(self) -> bool:
        """Return whether the model has a chat template; without one each message is a plain prompt."""
        return bool(self.loaded.require_tokenizer().chat_template)

    def say(self, text: str) -> Completion:
        """Answer a message; both are kept only if the answer was not interrupted or refused.

        Raises:
            RequestError: the conversation no longer fits into the model's context.
        """
        turn = [{"role": "user", "content": text}]
        if self.templated:
            prompt = self.loaded.encode_chat(self.messages + turn)
        else:
            prompt = encode_prompt(self.loaded, text, chat_template=False)
        completion = self.reply(prompt, self.params)
        self.messages += [*turn, {"role": "assistant", "content": completion.text or ""}]
        return completion

    def undo(self) -> str:
        """Forget the last exchange and return its message.

        Raises:
            RequestError: there is none.
        """
        if len(self.messages) < 2 or self.messages[-1]["role"] != "assistant":
            raise RequestError("/undo, /retry: nothing has been said yet")
        asked = self.messages[-2]["content"]
        del self.messages[-2:]
        return asked

    def set(self, words: str) -> str:
        """Change a sampling parameter and return a line that says so.

        Raises:
            RequestError: no such parameter, or a value that it does not take.
        """
        name, _, value = words.partition(" ")
        known = {each.name for each in dataclasses.fields(self.params)}
        if not name:
            return ", ".join(f"{key} {shown}" for key, shown in dataclasses.asdict(self.params).items())
        if name not in known:
            raise RequestError(f"/set: no parameter {name!r}; there are {', '.join(sorted(known))}")
        try:
            parsed: Any = json.loads(value)
        except json.JSONDecodeError:
            parsed = value
        if name == "policy" and parsed is not None:
            from difflm.decode.policies.named import parse_policy

            parsed = parse_policy(value)
        self.params = dataclasses.replace(self.params, **{name: parsed})
        return f"{name} {parsed}"

    def save(self, path: Path) -> str:
        """Append the conversation to a JSONL file and return a line that says so."""
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"messages": self.messages}) + "\n")
        return f"saved {len(self.messages)} messages to {path}"

    def retry(self) -> Completion:
        """Answer the last message again, with the next seed."""
        kept = list(self.messages)
        asked = self.undo()
        self.params = dataclasses.replace(self.params, seed=self.params.seed + 1)
        try:
            return self.say(asked)
        except BaseException:
            self.messages = kept
            raise


def answer(conversation: Conversation, line: str) -> str | None:
    """Do what a line asks for and return what to print; None to leave.

    Raises:
        RequestError: a command or message that cannot be served.
    """
    command, _, rest = line.strip().partition(" ")
    match command:
        case "/quit" | "/exit":
            return None
        case "/help":
            return HELP
        case "/retry":
            return describe(conversation.retry())
        case "/undo":
            return f"forgot: {conversation.undo()}"
        case "/system":
            conversation.messages[:] = [{"role": "system", "content": rest}] if rest else []
            return "a new conversation"
        case "/set":
            return conversation.set(rest)
        case "/save":
            if not rest:
                raise RequestError("/save: name a file")
            return conversation.save(Path(rest))
    if command.startswith("/"):
        raise RequestError(f"{command}: no such command; /help lists them")
    return describe(conversation.say(line)) if line.strip() else ""


@click.command()
@click.argument("model", type=folder())
@click.option("--system", metavar="TEXT", show_default="none", help="Instructions for the whole conversation.")
@click.option(
    "--show/--no-show",
    default=True,
    show_default=True,
    help="Whether to draw each block as it denoises, and drafts until they are verified.",
)
@sampling_options
@model_options
def chat(
    model: Path,
    *,
    system: str | None,
    show: bool,
    params: SamplingParams,
    device: str,
    dtype: str,
    weights: Weights,
    threads: int | None,
    revision: str | None,
) -> None:
    """Talk to MODEL. Its chat template is used if it has one, else each line is a prompt. /help lists commands.

    A model that drafts is decoded left to right in fewer forwards (decoding verified), and the text is its base's; a
    line says so, and the line below each answer says how many drafts were accepted.
    """
    loaded = open_model(model, device=device, dtype=dtype, weights=weights, threads=threads, revision=revision)
    conversation = Conversation(loaded, params, replier(loaded, show=show))
    if system:
        conversation.messages.append({"role": "system", "content": system})
    if not conversation.templated:
        click.echo("no chat template: each line is a prompt of its own", err=True)
    if line := chosen_decoding(loaded, params):
        click.echo(line, err=True)
    click.echo("/help lists commands, /quit leaves", err=True)
    talk(conversation)


def talk(conversation: Conversation) -> None:
    """Read lines until the input ends."""
    with contextlib.suppress(ImportError):
        # Line editing and history for input().
        importlib.import_module("readline")
    while True:
        try:
            printed = answer(conversation, input("> "))
        except EOFError:
            return
        except KeyboardInterrupt:
            printed = "stopped"
        except (DifflmError, OSError) as error:
            printed = str(error)
        if printed is None:
            return
        if printed:
            click.echo(printed, err=True)


def replier(loaded: LoadedModel, *, show: bool) -> Reply:
    """Return what decodes a prompt, drawing the blocks as they denoise, or printing the text at the end."""
    from difflm.decode.engine import Engine
    from difflm.display import show_denoising

    engine = Engine(loaded, prefix_caching=True)

    def reply(prompt: list[int], params: SamplingParams) -> Completion:
        if show:
            return show_denoising(loaded, engine.stream(prompt, params))
        completion = engine.generate([prompt], params)[0]
        click.echo(completion.text)
        return completion

    return reply
