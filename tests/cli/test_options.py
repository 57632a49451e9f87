"""Options that commands share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from difflm.cli.options import open_model, sampling_options
from difflm.decode.policies.named import policy
from difflm.decode.request import SamplingParams
from difflm.errors import ConfigError, RequestError
from tests.standins import write_parent


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
    words, expected = [], {}
    values = {"decoding": "next_token", "threshold": 0.5, "temperature": 0.7}
    for each in dataclasses.fields(SamplingParams):
        option = "--" + each.name.replace("_", "-")
        if each.name == "ignore_eos":
            words.append(option)
            expected[each.name] = True
            continue
        if each.name == "policy":  # it decides what other options say, too
            continue
        expected[each.name] = values.get(each.name, 3)
        words += [option, str(expected[each.name])]
    assert parse(words) == SamplingParams(**expected)


def test_a_policy_is_an_option() -> None:
    found = parse(["--policy", "hf21:threshold=0.7", "--max-new-tokens", "9"])
    assert found == SamplingParams(policy=policy("hf21", threshold=0.7), max_new_tokens=9)
    with pytest.raises(RequestError, match="choose one of"):
        parse(["--policy", "hf22"])


def test_threads_and_device_are_honoured(tmp_path: Path) -> None:
    parent = write_parent(tmp_path / "parent")
    before = torch.get_num_threads()
    try:
        loaded = open_model(parent, device="cpu", dtype="bfloat16", threads=before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert loaded.model.embedding.weight.dtype == torch.bfloat16
    with pytest.raises(ConfigError, match=r"--device: 'abacus' cannot be used here"):
        open_model(parent, device="abacus", dtype="float32", threads=None)
