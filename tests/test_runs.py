"""What a run gets from above the trainer: samples decoded by the engine, a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from difflm.checkpoints.loading import load_model
from difflm.decode.engine import generate
from difflm.decode.request import SamplingParams
from difflm.runs import sample_with_engine, train
from tests.training.runs import config_of


def test_samples_are_the_engine_s_completions(files: dict[str, Path]) -> None:
    loaded = load_model(files["paper"])
    prompts = ["in the", "a word"]
    found = sample_with_engine(loaded, prompts, block_size=4, max_new_tokens=8, threshold=0.5)
    expected = generate(loaded, prompts, SamplingParams(max_new_tokens=8, block_size=4, threshold=0.5))
    assert [(each.prompt, each.text) for each in found] == list(
        zip(prompts, [each.text for each in expected], strict=True)
    )
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.tokens_per_forward == pytest.approx(theirs.tokens_per_forward)


def test_a_next_token_model_is_sampled_left_to_right(files: dict[str, Path]) -> None:
    loaded = load_model(files["parent"])
    (found,) = sample_with_engine(loaded, ["in the"], block_size=None, max_new_tokens=5, threshold=0.9)
    assert found.tokens_per_forward == 1.0


def test_a_run_writes_samples_and_a_picture(files: dict[str, Path], tmp_path: Path) -> None:
    samples = {"every_tokens": 300, "prompts": ["in the"], "max_new_tokens": 8}
    config = config_of(files, tmp_path / "run", samples=samples)
    last = train(config)
    assert (last / "model.safetensors").is_file()
    assert (tmp_path / "run" / "training.png").stat().st_size > 1000
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(rows) >= 2
    assert all(row["prompt"] == "in the" for row in rows)
