"""Random models, batches and steps for measurements."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from difflm.bench.steps import Forward, random_batch, random_model, shape_of, synchronise
from difflm.diffusion.objectives import BlockDiffusion
from difflm.errors import ConfigError
from tests.checkpoints.tiny import ling_folder
from tests.standins import write_parent


def test_shapes_come_from_a_name_or_a_checkpoint(tmp_path: Path) -> None:
    assert shape_of("SmolLM2-135M").num_layers == 30
    assert shape_of("smollm2-135m", layers=3).num_layers == 3
    assert shape_of(str(write_parent(tmp_path / "parent"))).hidden_size == 32
    with pytest.raises(ConfigError, match=r"model: 'absent' is neither a path nor one of smollm2-135m"):
        shape_of("absent")
    with pytest.raises(ConfigError, match=r"layers: 31, the model has 30"):
        shape_of("smollm2-135m", layers=31)


def test_random_models_are_equal_on_every_call_and_tied(tmp_path: Path) -> None:
    config = shape_of(str(write_parent(tmp_path / "parent")))
    one, two = (random_model(config, device="cpu", dtype=torch.float32) for _ in range(2))
    assert all(torch.equal(left, right) for left, right in zip(one.parameters(), two.parameters(), strict=True))
    assert one.head.weight is one.embedding.weight
    assert torch.equal(one.norm.weight, torch.ones(32))
    assert float(one.embedding.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    half = random_model(config, device="cpu", dtype=torch.bfloat16)
    assert torch.equal(half.embedding.weight, one.embedding.weight.bfloat16())
    other = random_model(config, device="cpu", dtype=torch.float32, seed=1)
    assert not torch.equal(other.embedding.weight, one.embedding.weight)


def test_nothing_of_a_mixture_of_experts_stays_without_memory(tmp_path: Path) -> None:
    model = random_model(shape_of(str(ling_folder(tmp_path))), device="cpu", dtype=torch.float32)
    assert not any(tensor.is_meta for tensor in model.stored_tensors().values())


def test_a_mixture_of_experts_has_its_biases_and_trains(tmp_path: Path) -> None:
    config = shape_of(str(ling_folder(tmp_path / "ling")))
    model = random_model(config, device="cpu", dtype=torch.bfloat16)
    stored = model.stored_tensors()
    assert not any(tensor.is_meta for tensor in stored.values())
    assert {str(tensor.dtype) for name, tensor in stored.items() if name.endswith("expert_bias")} == {"torch.float32"}
    batch = random_batch(config, rows=1, length=16, documents=1)
    Forward(objective=BlockDiffusion(block_size=4), batch=batch).loss(model).backward()


def test_batches_have_the_documents_and_the_padding_that_were_asked_for() -> None:
    batch = random_batch(shape_of("smollm2-135m"), rows=2, length=11, documents=3, padding=1)
    assert batch.document_BL[0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, -1]
    assert batch.position_BL[1].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 0]
    assert torch.equal(batch.trainable_BL, batch.document_BL >= 0)
    with pytest.raises(ConfigError, match="documents: 12 in 11 tokens"):
        random_batch(shape_of("smollm2-135m"), rows=1, length=11, documents=12)


def test_the_loss_of_a_random_model_is_that_of_a_guess(tmp_path: Path) -> None:
    config = shape_of(str(write_parent(tmp_path / "parent")))
    model = random_model(config, device="cpu", dtype=torch.float32)
    batch = random_batch(config, rows=2, length=24, documents=2)
    losses = {
        attention: Forward(objective=BlockDiffusion(block_size=4), batch=batch, attention=attention).loss(model)
        for attention in ("split", "dense")
    }
    assert float(losses["split"].detach()) == pytest.approx(float(losses["dense"].detach()), rel=1e-5)
    assert float(losses["split"].detach()) == pytest.approx(math.log(config.vocab_size), rel=0.1)
    losses["split"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    synchronise("cpu")
