"""transformers' generate on our weights: the same answers as our engine, EOS included, and its limits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from difflm.checkpoints.hf_generate import TransformersGenerator
from difflm.checkpoints.loading import LoadedModel, load_model
from tests.standins import write_parent


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(write_parent(tmp_path_factory.mktemp("hf") / "parent"))


def test_it_takes_our_weights_and_dtype(parent: LoadedModel) -> None:
    generator = TransformersGenerator(parent, ends=())
    weight = generator.model.get_input_embeddings().weight
    assert generator.dtype == weight.dtype == torch.float32
    assert torch.equal(weight, parent.model.embedding.weight)
    assert not generator.model.training


def test_it_stops_at_the_ids_it_is_given_and_at_no_others(parent: LoadedModel) -> None:
    free = TransformersGenerator(parent, ends=())([1, 2, 3], 5)
    assert len(free) == 5
    stopped = TransformersGenerator(parent, ends={free[-1]})([1, 2, 3], 5)
    assert stopped == free[: free.index(free[-1]) + 1]


def test_nothing_is_left_on_disk(parent: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    TransformersGenerator(parent, ends=())
    assert not list(tmp_path.iterdir())
