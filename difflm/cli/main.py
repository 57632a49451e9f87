"""The command line: command names and their modules, imported when called; errors in one line, exit code 2."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from difflm import __version__
from difflm.errors import DifflmError, Interrupted

USER_ERROR, INTERRUPTED = 2, 130
SAVED = 75  # EX_TEMPFAIL of sysexits.h: "try again later"


class LazyGroup(click.Group):
    """A group whose commands are named and described here, and imported when they are called.

    Args:
        name: of the group.
        help: its description.
        homes: command name -> ("module:attribute", one-line description).
    """

    def __init__(self, name: str, *, help: str, homes: dict[str, tuple[str, str]]) -> None:
        super().__init__(name, help=help, no_args_is_help=True)
        self.homes = homes

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names in the order in which they are used."""
        return list(self.homes)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; None if there is no such name."""
        if cmd_name not in self.homes:
            return None
        module, _, attribute = self.homes[cmd_name][0].partition(":")
        return vars(importlib.import_module(module))[attribute]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.homes.items()])


bench = LazyGroup(
    "bench",
    help="Measure. A table, then one JSON document as the last line of stdout.",
    homes={
        "decode": ("difflm.cli.bench:decode", "Converted model against its AR parent, tokens per second."),
        "speed": ("difflm.cli.bench_speed:speed", "The engine under forced schedules, on any shape or checkpoint."),
        "train": ("difflm.cli.bench_train:train", "Training steps per attention backend: tokens per second, memory."),
    },
)

inspect = LazyGroup(
    "inspect",
    help="Look inside: an attention mask, a packed row, the key map of a checkpoint, the steps of an answer.",
    homes={
        "mask": ("difflm.cli.inspect:mask", "Draw who sees whom, of a made-up row or of a row of a data file."),
        "row": ("difflm.cli.inspect:row", "A packed row: documents, positions, blocks, roles, masks."),
        "keys": ("difflm.cli.inspect:keys", "Where each tensor of a checkpoint goes."),
        "steps": ("difflm.cli.inspect:steps", "Which forward decided what, of an answer; a picture, a replay."),
    },
)

cli = click.version_option(__version__, prog_name="difflm")(
    LazyGroup(
        "difflm",
        help="Turn an autoregressive checkpoint into a block-diffusion language model, train it, decode it.",
        homes={
            "convert": ("difflm.cli.convert:convert", "Checkpoint -> checkpoint with a mask token."),
            "prepare": ("difflm.cli.prepare:prepare", "Files -> tokenised shards; look at packed rows."),
            "train": ("difflm.cli.train:train", "Run a recipe: adapt, fine-tune, or train an AR control."),
            "recipes": ("difflm.cli.recipes:recipes", "List the shipped recipes; show NAME prints one."),
            "estimate": ("difflm.cli.estimate:estimate", "Steps, memory and time of a run, before it runs."),
            "merge": ("difflm.cli.merge:merge", "Average the best checkpoints of a run."),
            "export": ("difflm.cli.export:export", "Checkpoint -> the layout that an engine or trainer loads."),
            "report": ("difflm.cli.report:report", "A run folder -> one HTML page: curves, tables, configuration."),
            "eval": ("difflm.cli.eval:evaluate", "Accuracy, likelihoods and speed on tasks, without a network."),
            "generate": ("difflm.cli.generate:generate", "Complete prompts."),
            "trajectories": ("difflm.cli.trajectories:trajectories", "A model's own right answers as training data."),
            "sweep": ("difflm.cli.sweep:sweep", "Score and speed over thresholds, block sizes and policies."),
            "tune": ("difflm.cli.tune:tune", "Find the fastest block size and threshold for a quality, keep them."),
            "chat": ("difflm.cli.chat:chat", "Talk to a model and watch its blocks denoise."),
            "serve": ("difflm.cli.serve:serve", "Answer clients of the chat completions interface."),
            "inspect": ("difflm.cli.main:inspect", "Draw a mask, show a packed row, a key map or steps."),
            "doctor": ("difflm.cli.doctor:doctor", "Try what works on this machine."),
            "bench": ("difflm.cli.main:bench", "Measure the speed of decoding and of training."),
        },
    )
)


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code.

    0: done. 2: input that cannot be used. 75: a training run that a signal stopped after it had saved everything.
    130: interrupted.

    Args:
        arguments: without the program's name.
    """
    try:
        outcome = cli.main(list(arguments), prog_name="difflm", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return USER_ERROR
    except click.ClickException as error:
        return _fail(error.format_message())
    except Interrupted as error:
        return _fail(str(error), code=SAVED)
    except DifflmError as error:
        return _fail(str(error))
    except OSError as error:
        # A file that cannot be read or written, a full disk: the user's to mend. Anything else is a defect of ours.
        if error.strerror is None:
            raise
        return _fail(f"{error.filename or 'output'}: {error.strerror}")
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", code=INTERRUPTED)
    return outcome if isinstance(outcome, int) else 0


def _fail(message: str, *, code: int = USER_ERROR) -> int:
    print(f"difflm: {' '.join(message.split())}", file=sys.stderr)
    return code
