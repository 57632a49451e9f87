"""Learning rate over tokens, AdamW's groups, master weights."""

from __future__ import annotations

import copy

import pytest
import torch

from difflm.training.config import LearningRateConfig, OptimizerConfig
from difflm.training.optim import MasterWeights, Optimizer, learning_rate_ratio
from tests.decode.tiny import architecture, random_transformer


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LearningRateConfig(kind="constant", warmup_tokens=20), [0.0, 0.5, 1.0, 1.0, 1.0]),
        (LearningRateConfig(kind="linear", final_ratio=0.0), [1.0, 0.9, 0.8, 0.5, 0.0]),
        (LearningRateConfig(kind="linear", warmup_fraction=0.2, final_ratio=0.5), [0.0, 0.5, 1.0, 0.8125, 0.5]),
        (LearningRateConfig(kind="cosine", final_ratio=0.0), [1.0, 0.97553, 0.904508, 0.5, 0.0]),
        (LearningRateConfig(kind="wsd", decay_fraction=0.5, final_ratio=0.1), [1.0, 1.0, 1.0, 1.0, 0.1]),
    ],
)
def test_learning_rate(config: LearningRateConfig, expected: list[float]) -> None:
    found = [learning_rate_ratio(config, tokens, 100) for tokens in (0, 10, 20, 50, 100)]
    assert found == pytest.approx(expected, abs=1e-4)


def test_decay_reaches_matrices_only() -> None:
    model = random_transformer(architecture(), seed=0).float()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = Optimizer(model, OptimizerConfig(learning_rate=0.1, weight_decay=0.5), mask_id=None)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(1.0)
    for name, parameter in model.named_parameters():
        decays = parameter.dim() > 1 and not name.startswith(("embedding", "head"))
        expected = before[name] * (1 - 0.1 * 0.5) if decays else before[name]
        assert torch.allclose(parameter, expected), name


def test_clipping_returns_the_norm_before_it() -> None:
    model = random_transformer(architecture(), seed=0).float()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    count = sum(parameter.numel() for parameter in model.parameters())
    optimizer = Optimizer(model, OptimizerConfig(max_grad_norm=1.0), mask_id=None)
    assert float(optimizer.clip()) == pytest.approx(count**0.5)
    total = sum(float(parameter.grad.pow(2).sum()) for parameter in model.parameters() if parameter.grad is not None)
    assert total == pytest.approx(1.0, rel=1e-3)
    unlimited = Optimizer(model, OptimizerConfig(max_grad_norm=0.0), mask_id=None)
    assert float(unlimited.clip()) == pytest.approx(1.0, rel=1e-3)


def test_bfloat16_gradients_are_summed_in_float32() -> None:
    master = random_transformer(architecture(), seed=0).float()
    working = copy.deepcopy(master).to(torch.bfloat16)
    weights = MasterWeights(master, working)
    for value in (1.0, 2.0**-10):  # a bfloat16 sum would lose the second
        for parameter in working.parameters():
            parameter.grad = torch.full_like(parameter, value)
        weights.collect()
    assert all(parameter.grad is None for parameter in working.parameters())
    assert all(bool((p.grad == 1.0 + 2.0**-10).all()) for p in master.parameters() if p.grad is not None)
    with torch.no_grad():
        for parameter in master.parameters():
            parameter.add_(1.0)
    weights.publish()
    for one, other in zip(master.parameters(), working.parameters(), strict=True):
        assert torch.equal(one.bfloat16(), other)


def test_state_survives_by_name() -> None:
    model = random_transformer(architecture(), seed=0).float()
    twin = copy.deepcopy(model)
    optimizers = [Optimizer(each, OptimizerConfig(), mask_id=None) for each in (model, twin)]
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    optimizers[0].step(1.0)
    twin.load_state_dict(model.state_dict())
    optimizers[1].load_named_state({name: value.clone() for name, value in optimizers[0].named_state().items()})
    for each, optimizer in zip((model, twin), optimizers, strict=True):
        for parameter in each.parameters():
            parameter.grad = parameter.detach().clone()
        optimizer.step(0.5)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
