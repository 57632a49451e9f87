"""Every sampling parameter is an option."""

from __future__ import annotations

import dataclasses
from typing import Any

import click
import pytest
from click.testing import CliRunner

from difflm.cli.sampling import sampling_options
from difflm.decode.policies.named import policy
from difflm.decode.request import SamplingParams
from difflm.errors import RequestError


def parse(words: list[str]) -> SamplingParams:
    seen: list[SamplingParams] = []

    @click.command()
    @sampling_options
    def command(*, params: SamplingParams) -> None:
        seen.append(params)

    result = CliRunner().invoke(command, words)
    if result.exception:
        raise result.exception
    return seen[0]


def test_without_options_the_parameters_are_the_defaults() -> None:
    assert parse([]) == SamplingParams()


def test_every_parameter_has_its_option() -> None:
    words: list[str] = []
    expected: dict[str, Any] = {}
    values = {"threshold": 0.5, "temperature": 0.7, "top_p": 0.5, "min_p": 0.25}
    several: dict[str, Any] = {
        "logit_bias": (["--logit-bias", "4=-5", "--logit-bias", "7=0.5"], {4: -5.0, 7: 0.5}),
        "stop": (["--stop", "a b", "--stop", "c"], ("a b", "c")),
        "stop_token_ids": (["--stop-token-ids", "4"], (4,)),
    }
    for each in dataclasses.fields(SamplingParams):
        option = "--" + each.name.replace("_", "-")
        if each.name == "ignore_eos":
            words.append(option)
            expected[each.name] = True
            continue
        if each.name in ("policy", "decoding"):  # they decide what other options say, too
            continue
        if each.name in ("guesses", "constraint"):  # for programs: what events hold, and an object
            continue
        if each.name in several:
            words += several[each.name][0]
            expected[each.name] = several[each.name][1]
            continue
        expected[each.name] = values.get(each.name, 3)
        words += [option, str(expected[each.name])]
    assert parse(words) == SamplingParams(**expected)


def test_next_token_decoding_is_an_option() -> None:
    assert parse(["--decoding", "next_token"]) == SamplingParams(decoding="next_token")


def test_a_policy_is_an_option() -> None:
    found = parse(["--policy", "hf21:threshold=0.7", "--max-new-tokens", "9"])
    assert found == SamplingParams(policy=policy("hf21", threshold=0.7), max_new_tokens=9)
    with pytest.raises(RequestError, match="choose one of"):
        parse(["--policy", "hf22"])


def test_a_bias_of_another_form_is_refused() -> None:
    with pytest.raises(SystemExit):
        parse(["--logit-bias", "4:5"])
