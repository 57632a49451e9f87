"""The options of `SamplingParams`, one for each of its fields."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import click

Decorated = Callable[..., Any]


class _Bias(click.ParamType):
    """ID=NUMBER."""

    name = "ID=NUMBER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float]:
        """Return (id, number)."""
        token, _, number = str(value).partition("=")
        try:
            return int(token), float(number)
        except ValueError:
            self.fail(f"{value!r} is not ID=NUMBER, e.g. 42=-5", param, ctx)


def sampling_options(command: Decorated) -> Decorated:
    """Add the fields of `SamplingParams` as options; the command receives them as one argument `params`."""

    @functools.wraps(command)
    def with_params(*arguments: Any, **values: Any) -> Any:
        from difflm.decode.policies.named import parse_policy
        from difflm.decode.request import SamplingParams

        if values.get("policy") is not None:
            values["policy"] = parse_policy(values["policy"])
        values["logit_bias"] = dict(values["logit_bias"]) or None
        fields = [each.name for each in dataclasses.fields(SamplingParams) if each.name in values]
        params = SamplingParams(**{name: values.pop(name) for name in fields})
        return command(*arguments, params=params, **values)

    decorated: Decorated = with_params
    for option in reversed([*_deciding(), *_drawing(), *_ending()]):
        decorated = option(decorated)
    return decorated


def _integer(name: str, default: int, text: str) -> Decorated:
    return click.option(name, type=int, default=default, show_default=True, help=text)


def _number(name: str, default: float, text: str) -> Decorated:
    return click.option(name, type=float, default=default, show_default=True, help=text)


def _deciding() -> list[Decorated]:
    """Return the options that say how much is decided, and what a forward keeps."""
    return [
        _integer("--max-new-tokens", 128, "Longest completion, tokens."),
        click.option(
            "--block-size",
            type=int,
            show_default="the model's generation_config, then its config, then 32",
            help="Diffusion block, tokens.",
        ),
        click.option(
            "--threshold",
            type=float,
            show_default="the model's generation_config, then 0.95",
            help="Keep proposals with a probability above this; from 1 on one token per forward.",
        ),
        _integer("--min-accept", 1, "Least tokens kept per forward, tokens."),
        click.option(
            "--editing-threshold",
            type=float,
            show_default="none: what is decided stays",
            help="Replace decided tokens of a block where another has a probability above this.",
        ),
        _integer("--max-post-steps", 16, "Most forwards of a block that only edit."),
        click.option(
            "--decoding",
            type=click.Choice(["block", "next_token", "verified"]),
            show_default="verified where the model drafts, else block",
            help="Block diffusion; left to right (AR models); or left to right with drafts that are verified.",
        ),
        click.option(
            "--policy",
            metavar="NAME[:SETTING=VALUE,...]",
            show_default="native, with these options",
            help="Rules of another system, or verified with settings of its own; see docs/decoding.md.",
        ),
    ]


def _drawing() -> list[Decorated]:
    """Return the options that say how a token is drawn."""
    return [
        _number("--temperature", 0.0, "Of the softmax; 0 takes the arg-max."),
        _integer("--top-k", 0, "Draw from the k most probable tokens; 0 keeps all."),
        _number("--top-p", 1.0, "Draw from the most probable tokens that together exceed this."),
        _number("--min-p", 0.0, "Draw from tokens with at least this share of the best one's probability."),
        _number("--repetition-penalty", 1.0, "Divides positive logits of tokens in prompt or answer."),
        _number("--presence-penalty", 0.0, "Subtracted from the logits of tokens in the answer."),
        _number("--frequency-penalty", 0.0, "The same, times how often they are there."),
        click.option(
            "--logit-bias",
            type=_Bias(),
            multiple=True,
            show_default="none",
            help="Added to the logit of a token, repeatable.",
        ),
        _integer("--seed", 0, "Of the draws at temperature > 0."),
        _integer("--n", 1, "Answers to each of the prompts."),
        click.option(
            "--logprobs",
            type=int,
            show_default="none",
            help="Keep log-probabilities, and those of so many best tokens.",
        ),
    ]


def _ending() -> list[Decorated]:
    """Return the options that say when an answer ends."""
    return [
        click.option(
            "--ignore-eos/--stop-at-eos",
            default=False,
            show_default=True,
            help="Whether to go on past EOS up to --max-new-tokens.",
        ),
        click.option(
            "--stop-token-ids",
            type=int,
            multiple=True,
            metavar="ID",
            show_default="none",
            help="Id that ends an answer like EOS, repeatable.",
        ),
        click.option(
            "--stop", multiple=True, metavar="TEXT", show_default="none", help="Text that ends an answer, repeatable."
        ),
        _integer("--min-tokens", 0, "Nothing ends an answer before so many tokens."),
    ]
