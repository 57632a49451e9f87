"""Learning rate over tokens, optimisers against slow explicit steps, their state by name, master weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from difflm.errors import CheckpointError
from difflm.models.config import MoEConfig
from difflm.models.transformer import Transformer
from difflm.training.config import LearningRateConfig, OptimizerConfig
from difflm.training.config_optimizer import ParameterGroupConfig
from difflm.training.optim import MasterWeights, Optimizer, fused_adamw_works, learning_rate_ratio
from difflm.training.trainer import Trainer
from tests.decode.tiny import architecture, random_transformer
from tests.training.runs import config_of
from tests.training.test_muon import slow_orthogonal


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


MUON = OptimizerConfig(
    kind="muon",
    learning_rate=0.01,
    muon_learning_rate=0.03,
    weight_decay=0.1,
    layer_decay=0.5,
    groups=(ParameterGroupConfig(pattern="*.down.*", lr_scale=2.0, weight_decay=0.0),),
    max_grad_norm=0.7,
    mask_row_lr_scale=3.0,
)


def gradients(model: Transformer, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(each.shape, generator=generator) for name, each in model.named_parameters()}


def set_gradients(model: Transformer, seed: int) -> None:
    made = gradients(model, seed)
    for name, parameter in model.named_parameters():
        parameter.grad = made[name] if parameter.requires_grad else None


class SlowOptimizer:
    """One parameter after the other in float64, as the papers write it (two layers, no frozen parameters)."""

    def __init__(self, model: Transformer, config: OptimizerConfig, mask_id: int) -> None:
        self.weights = {name: each.detach().double().clone() for name, each in model.named_parameters()}
        self.first = {name: torch.zeros_like(each) for name, each in self.weights.items()}
        self.second = {name: torch.zeros_like(each) for name, each in self.weights.items()}
        self.config, self.mask_id, self.steps = config, mask_id, 0

    def step(self, given: dict[str, Tensor], ratio: float) -> None:
        config = self.config
        self.steps += 1
        norm = sum(float(each.double().pow(2).sum()) for each in given.values()) ** 0.5
        share = min(config.max_grad_norm / norm, 1.0)
        for name, weight in self.weights.items():
            gradient = given[name].double() * share
            inside = name.startswith("layers.") and weight.dim() > 1
            scale = config.layer_decay ** {"layers.0": 1, "layers.1": 0, "embedding": 2}.get(name[:8].rstrip("."), 0)
            scale = config.layer_decay**2 if name.startswith("embedding") else scale
            decay = config.weight_decay if inside else 0.0
            if ".down." in name and config.groups:
                scale, decay = scale * 2.0, 0.0
            before = weight.clone()
            if config.kind == "muon" and inside:
                rate = (config.muon_learning_rate or config.learning_rate) * scale * ratio
                self.first[name] = config.muon_momentum * self.first[name] + (1 - config.muon_momentum) * gradient
                mixed = (1 - config.muon_momentum) * gradient + config.muon_momentum * self.first[name]
                update = 0.2 * max(weight.shape) ** 0.5 * slow_orthogonal(mixed)
            else:
                rate = config.learning_rate * scale * ratio
                one, two = config.betas
                self.first[name] = one * self.first[name] + (1 - one) * gradient
                self.second[name] = two * self.second[name] + (1 - two) * gradient**2
                mean = self.first[name] / (1 - one**self.steps)
                update = mean / ((self.second[name] / (1 - two**self.steps)).sqrt() + config.eps)
            weight.mul_(1 - rate * decay).sub_(rate * update)
            if name == "embedding.weight":
                row = self.mask_id
                weight[row] = before[row] + config.mask_row_lr_scale * (weight[row] - before[row])


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_steps_equal_the_explicit_ones(kind: str) -> None:
    config = MUON if kind == "muon" else replace(MUON, kind="adamw", muon_learning_rate=None)
    model = random_transformer(architecture(), seed=0).float()
    slow = SlowOptimizer(model, config, mask_id=12)
    optimizer = Optimizer(model, config, mask_id=12)
    for number, ratio in enumerate((1.0, 0.4, 0.9)):
        set_gradients(model, number)
        optimizer.clip()
        assert optimizer.step(ratio) == config.learning_rate * ratio
        slow.step(gradients(model, number), ratio)
    for name, parameter in model.named_parameters():
        muon = kind == "muon" and name.startswith("layers.") and parameter.dim() > 1
        tolerance = 0.02 * 0.2 * max(parameter.shape) ** 0.5 * 3 * 0.06 if muon else 2e-6
        torch.testing.assert_close(parameter.detach().double(), slow.weights[name], atol=tolerance, rtol=1e-6, msg=name)


def test_fused_and_unfused_adamw_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fused_adamw_works(torch.device("cpu"), torch.float32)
    assert not fused_adamw_works(torch.device("meta"), torch.float32)
    models = [random_transformer(architecture(), seed=0).float() for _ in range(2)]
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1)
    fused = Optimizer(models[0], config, mask_id=None)
    monkeypatch.setattr("difflm.training.optim.fused_adamw_works", lambda device, dtype: False)
    plain = Optimizer(models[1], config, mask_id=None)
    assert [part.param_groups[0]["fused"] for part in (*fused.parts, *plain.parts)] == [True, False]
    for number in range(3):
        for model, optimizer in zip(models, (fused, plain), strict=True):
            set_gradients(model, number)
            optimizer.clip()
            optimizer.step(0.5)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-6)


def test_muon_updates_the_matrices_inside_the_layers_only() -> None:
    model = random_transformer(architecture(), seed=0).float()
    optimizer = Optimizer(model, MUON, mask_id=12)
    moments = {name.rpartition(".")[0] for name in optimizer.named_state() if name.endswith("momentum_buffer")}
    expected = {name for name, each in model.named_parameters() if name.startswith("layers.") and each.dim() > 1}
    assert moments == expected
    assert "Muon on 14 tensors" in optimizer.describe()


def test_experts_are_updated_by_muon_each_by_itself() -> None:
    moe = MoEConfig(num_experts=4, experts_per_token=2, expert_size=6, score="softmax")
    model = Transformer(replace(architecture(), moe=moe))
    config = OptimizerConfig(kind="muon", learning_rate=0.1)
    optimizer = Optimizer(model, config, mask_id=None)
    experts = dict(model.named_parameters())["layers.1.mlp.experts.gate_up"]
    assert optimizer.named_state()["layers.1.mlp.experts.gate_up.momentum_buffer"].shape == (4, 12, 16)
    before = experts.detach().clone()
    set_gradients(model, 0)
    assert experts.grad is not None
    experts.grad[2] = 0.0
    gradient = experts.grad.clone()
    optimizer.step(1.0)
    assert torch.equal(experts[2], before[2]), "an expert that saw no token"
    for expert in (0, 1, 3):
        for half in (slice(0, 6), slice(6, 12)):
            update = slow_orthogonal(gradient[expert, half]) * 0.1 * 0.2 * 16**0.5
            moved = (before[expert, half] - experts[expert, half]).detach().double()
            torch.testing.assert_close(moved, update, atol=0.04 * 0.08, rtol=0)


def test_frozen_parameters_have_no_gradient_no_moments_and_no_share_in_the_norm() -> None:
    model = random_transformer(architecture(), seed=0).float()
    optimizer = Optimizer(model, OptimizerConfig(freeze=("embedding.*", "layers.0.*"), weight_decay=0.5), mask_id=None)
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    frozen = {name for name, each in model.named_parameters() if not each.requires_grad}
    assert frozen == {name for name in before if name.startswith(("embedding.", "layers.0."))}
    assert not [name for name in optimizer.named_state() if name.startswith(("embedding.", "layers.0."))]
    set_gradients(model, 0)
    made = gradients(model, 0)
    expected = sum(float(each.pow(2).sum()) for name, each in made.items() if name not in frozen) ** 0.5
    assert float(optimizer.clip()) == pytest.approx(expected, rel=1e-5)
    optimizer.step(1.0)
    changed = {name for name, each in model.named_parameters() if not torch.equal(each, before[name])}
    assert changed == set(before) - frozen
    assert "frozen: 10 tensors" in optimizer.describe()


def test_freezing_a_tied_pair_is_said() -> None:
    model = Transformer(replace(architecture(), tied_embeddings=True))
    optimizer = Optimizer(model, OptimizerConfig(freeze=("head.weight",)), mask_id=None)
    assert not model.embedding.weight.requires_grad
    assert optimizer.describe().endswith("; embedding.weight and head.weight are one tensor, both are frozen")


def test_the_state_is_complete_before_the_first_step() -> None:
    model = random_transformer(architecture(), seed=0).float()
    twin = copy.deepcopy(model)
    fresh, restored = Optimizer(model, MUON, mask_id=12), Optimizer(twin, MUON, mask_id=12)
    names = set(fresh.named_state())
    restored.load_named_state({name: value.clone() for name, value in fresh.named_state().items()})
    for each, optimizer in ((model, fresh), (twin, restored)):
        set_gradients(each, 0)
        optimizer.step(1.0)
    assert set(fresh.named_state()) == names
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_other_states_are_refused_in_one_line_and_change_nothing(kind: str) -> None:
    config = MUON if kind == "muon" else OptimizerConfig()
    model = random_transformer(architecture(), seed=0).float()
    optimizer = Optimizer(model, config, mask_id=12)
    set_gradients(model, 0)
    optimizer.step(1.0)
    whole = {name: value.clone() for name, value in optimizer.named_state().items()}
    name = "layers.0.mlp.up.weight." + ("momentum_buffer" if kind == "muon" else "exp_avg")
    without = {key: torch.zeros_like(value) for key, value in whole.items() if key != name}
    cases: list[tuple[dict[str, Tensor], str]] = [
        (without, f"missing {name};"),
        ({**whole, "layers.9.x": torch.zeros(1)}, "unknown layers.9.x;"),
        (
            {**without, name: torch.zeros(2, 2)},
            rf"{name} is torch.float32 \[2, 2\], expected torch.float32 \[24, 16\];",
        ),
        ({**without, name: whole[name].bfloat16()}, f"{name} is torch.bfloat16"),
    ]
    for state, message in cases:
        with pytest.raises(CheckpointError, match=rf"^moments\.safetensors: {message}") as caught:
            optimizer.load_named_state(state, where="moments.safetensors")
        assert "\n" not in str(caught.value)
        assert "resume with the run's own config.yaml" in str(caught.value)
    assert all(torch.equal(value, whole[key]) for key, value in optimizer.named_state().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_muon_run_resumes_bit_for_bit(dtype: str, files: dict[str, Path], tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "optimizer": {
            "kind": "muon",
            "learning_rate": 1e-3,
            "weight_decay": 0.1,
            "layer_decay": 0.8,
            "freeze": ["layers.0.attention.*"],
            "mask_row_lr_scale": 4.0,
        },
        "dtype": dtype,
        "accumulation": 2,
        "rows_per_batch": 1,
    }

    def run(name: str, tokens: int, resume: Any = "never") -> Trainer:
        curriculum = [{"block_size": 4, "tokens": 600}]
        trainer = Trainer(config_of(files, tmp_path / name, curriculum=curriculum, **settings), resume=resume)
        while trainer.state.tokens < tokens:
            trainer.train_step()
        return trainer

    whole = run("whole", 600)
    half = run("half", 250)
    half._save()
    half.close()
    rest = run("half", 600, "auto")
    assert rest.state.step == whole.state.step > half.state.step > 0
    one, other = whole.loaded.model.state_dict(), rest.loaded.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    state = rest.optimizer.named_state()
    assert all(torch.equal(value, state[name]) for name, value in whole.optimizer.named_state().items())
    frozen = {name for name, each in rest.model.named_parameters() if not each.requires_grad}
    assert frozen == {name for name in one if name.startswith("layers.0.attention.")}
    assert any(name.endswith("momentum_buffer") for name in state)
