"""Router and experts against slow loops over tokens and experts, in outputs and gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from difflm.models import moe as moe_module
from difflm.models.config import ModelConfig, MoEConfig, RopeConfig
from difflm.models.moe import Experts, MoE, Router, choose_experts, grouped_linear

LING = MoEConfig(
    num_experts=8,
    experts_per_token=3,
    expert_size=6,
    score="sigmoid",
    groups=4,
    groups_kept=2,
    expert_bias=True,
    scaling=2.5,
    shared_experts=2,
    shared_size=5,
)
QWEN = MoEConfig(num_experts=8, experts_per_token=2, expert_size=6, score="softmax")


def architecture(moe: MoEConfig, hidden_size: int = 8) -> ModelConfig:
    return ModelConfig(
        vocab_size=11,
        hidden_size=hidden_size,
        intermediate_size=10,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        norm_eps=1e-6,
        rope=RopeConfig(partial=0.5),
        max_positions=32,
        moe=moe,
    )


def layer(moe: MoEConfig, hidden_size: int = 8) -> MoE:
    made = MoE(architecture(moe, hidden_size)).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*made.parameters(), *made.buffers()):
            tensor.copy_(0.5 * torch.randn(tensor.shape, generator=generator))
    return made


def hidden(rows: int = 2, length: int = 9, *, size: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, length, size, generator=torch.Generator().manual_seed(1)).to(dtype)


def choose_slowly(logits: list[float], bias: list[float], config: MoEConfig) -> dict[int, float]:
    """Return {expert: weight} of one token, by the words of the rule."""
    if config.score == "sigmoid":
        scores = torch.tensor(logits, dtype=torch.float64).sigmoid().tolist()
    else:
        scores = torch.tensor(logits, dtype=torch.float64).softmax(-1).tolist()
    choice = [score + offset for score, offset in zip(scores, bias, strict=True)]
    members = len(choice) // config.groups
    groups = [choice[at : at + members] for at in range(0, len(choice), members)]
    strength = [sum(sorted(group)[-2:]) for group in groups]
    kept = sorted(range(config.groups), key=lambda group: -strength[group])[: config.groups_kept]
    allowed = [expert for expert in range(len(choice)) if expert // members in kept]
    chosen = sorted(allowed, key=lambda expert: -choice[expert])[: config.experts_per_token]
    total = sum(scores[expert] for expert in chosen) if config.normalise else 1.0
    return {expert: scores[expert] / total * config.scaling for expert in chosen}


def experts_slowly(layer: MoE, hidden_BND: Tensor) -> Tensor:
    """Return the layer's output by a loop over experts: whole matrices, all tokens, weight 0 where not chosen."""
    hidden_ND = hidden_BND.flatten(0, 1)
    weight_NK, expert_NK = layer.router(hidden_ND)
    out = torch.zeros_like(hidden_ND)
    for expert in range(layer.router.config.num_experts):
        gate, up = layer.experts.gate_up[expert].chunk(2)
        each = (F.silu(hidden_ND @ gate.T) * (hidden_ND @ up.T)) @ layer.experts.down[expert].T
        out = out + each * (weight_NK * (expert_NK == expert)).sum(-1, keepdim=True)
    if layer.shared is not None:
        out = out + layer.shared(hidden_ND)
    return out.view_as(hidden_BND)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    score=st.sampled_from(["sigmoid", "softmax"]),
    shape=st.sampled_from([(8, 1, 1, 3), (8, 4, 2, 3), (8, 4, 2, 4), (8, 2, 1, 1), (12, 3, 3, 5), (32, 8, 4, 8)]),
    normalise=st.booleans(),
)
def test_choice_equals_the_rule(data: Any, score: Any, shape: tuple[int, ...], normalise: bool) -> None:
    experts, groups, kept, per_token = shape
    config = MoEConfig(
        num_experts=experts,
        experts_per_token=per_token,
        expert_size=1,
        score=score,
        groups=groups,
        groups_kept=kept,
        normalise=normalise,
        scaling=data.draw(st.sampled_from([1.0, 2.5])),
    )
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    logit_NE = 2 * torch.randn(5, experts, dtype=torch.float64, generator=generator)
    # Negative biases make biased scores negative: experts outside of the kept groups must not win by being 0.
    bias_E = torch.randn(experts, dtype=torch.float64, generator=generator) - data.draw(st.sampled_from([0.0, 2.0]))
    weight_NK, expert_NK = choose_experts(logit_NE, bias_E, config)
    for row in range(5):
        expected = choose_slowly(logit_NE[row].tolist(), bias_E.tolist(), config)
        assert dict(zip(expert_NK[row].tolist(), weight_NK[row].tolist(), strict=True)) == pytest.approx(expected)


def test_the_bias_only_chooses() -> None:
    logit_NE = torch.tensor([[2.0, 1.0, 0.0, -1.0]], requires_grad=True)
    config = MoEConfig(num_experts=4, experts_per_token=2, expert_size=1, score="sigmoid", normalise=False)
    bias = torch.tensor([0.0, -5.0, 0.0, 5.0], requires_grad=True)
    weight_NK, expert_NK = choose_experts(logit_NE, bias, config)
    assert expert_NK.tolist() == [[3, 0]]
    assert torch.equal(weight_NK, logit_NE.sigmoid()[:, [3, 0]])
    weight_NK.sum().backward()
    assert bias.grad is None
    assert logit_NE.grad is not None
    assert logit_NE.grad[0, 1] == logit_NE.grad[0, 2] == 0.0


@pytest.mark.parametrize("moe", [LING, replace(LING, shared_experts=0), QWEN, replace(QWEN, experts_per_token=8)])
@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (3, 40)])
def test_sorted_experts_equal_the_loop(moe: MoEConfig, shape: tuple[int, int]) -> None:
    made = layer(moe)
    tensors = [hidden(*shape).requires_grad_(), *made.parameters()]
    weight = torch.randn(*shape, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours, slow = made(tensors[0])[0], experts_slowly(made, tensors[0])
    assert torch.allclose(ours, slow, atol=1e-12)
    assert ours.std() > 0.1
    grads = [torch.autograd.grad((out * weight).sum(), tensors, materialize_grads=True) for out in (ours, slow)]
    for one, other in zip(*grads, strict=True):
        assert torch.allclose(one, other, atol=1e-12)
        assert one.abs().sum() > 0


def test_experts_without_tokens_get_zero_gradients() -> None:
    made = layer(QWEN)
    with torch.no_grad():
        made.router.weight.zero_()
    made(hidden())[0].sum().backward()
    chosen = set(made.router(hidden().flatten(0, 1))[1].flatten().tolist())
    grad = made.experts.down.grad
    assert grad is not None
    assert {expert for expert in range(8) if grad[expert].abs().sum() > 0} == chosen
    assert 0 < len(chosen) < 8


@pytest.mark.parametrize("counts", [[3, 0, 5, 1], [0, 0, 0, 4], [4, 0, 0, 0]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_grouped_linear_equals_one_product_per_row(counts: list[int], dtype: torch.dtype) -> None:
    """The loop (float64) and torch's grouped product (bfloat16), empty groups included, with gradients."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(sum(counts), 16, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(4, 24, 16, generator=generator).to(dtype).requires_grad_()
    group_P = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    out = grouped_linear(rows, weight, torch.tensor(counts).cumsum(0))
    slow = (weight[group_P].double() @ rows[..., None].double())[..., 0]
    tolerance = 1e-12 if dtype == torch.float64 else 0.02
    assert torch.allclose(out.double(), slow, rtol=tolerance, atol=tolerance)
    seed = torch.randn(out.shape, generator=generator).to(dtype)
    ours, theirs = (torch.autograd.grad(each, (rows, weight), seed.to(each.dtype)) for each in (out, slow))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one.double(), other.double(), rtol=tolerance, atol=5 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_grouped_product_of_torch_equals_the_loop(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this dtype takes on CPU against what other dtypes and sizes take, through a whole layer."""
    made, inputs = layer(replace(QWEN, expert_size=16), 16).to(dtype), hidden(3, 40, size=16, dtype=dtype)
    calls: list[Any] = []
    monkeypatch.setattr(
        F, "grouped_mm", lambda *given, torch=F.grouped_mm, **more: calls.append(1) or torch(*given, **more)
    )
    found: list[list[Tensor]] = []
    for taken in (2, 0):
        tensors = [inputs.clone().requires_grad_(), *made.parameters()]
        out = made(tensors[0])[0]
        found.append([out, *torch.autograd.grad(out.float().square().sum(), tensors)])
        assert len(calls) == taken
        calls.clear()
        monkeypatch.setattr(moe_module, "grouped_linear", moe_module._LoopedLinear.apply)
    for ours, loop in zip(*found, strict=True):
        assert torch.allclose(ours, loop, rtol=1e-5 if dtype == torch.float32 else 0.02, atol=1e-5)


def test_frozen_weights_cost_no_gradient() -> None:
    made = layer(QWEN)
    made.experts.requires_grad_(False)
    inputs = hidden().requires_grad_()
    made(inputs)[0].sum().backward()
    assert made.experts.down.grad is None
    assert inputs.grad is not None
    assert made.router.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_router_computes_in_float32(dtype: torch.dtype) -> None:
    """Equal to a float32 router on the same (rounded) values, bit for bit; the bias is never narrowed."""
    bias = 1.0 + torch.arange(8) * 1e-4
    router = Router(8, LING)
    with torch.no_grad():
        router.weight.copy_(layer(LING).router.weight)
        assert router.expert_bias is not None
        router.expert_bias.copy_(bias)
    narrow = router.to(dtype)
    assert narrow.weight.dtype == dtype
    assert narrow.expert_bias is not None
    assert torch.equal(narrow.expert_bias, bias)
    inputs = hidden(dtype=dtype).flatten(0, 1)
    weight_NK, expert_NK = narrow(inputs)
    assert weight_NK.dtype == torch.float32
    logit_NE = inputs.float() @ narrow.weight.float().T
    expected = choose_experts(logit_NE, bias, LING)
    assert torch.equal(weight_NK, expected[0])
    assert torch.equal(expert_NK, expected[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(narrow(inputs)[0], weight_NK)


def test_bfloat16_is_close_to_float64_and_gradients_flow() -> None:
    moe = replace(LING, expert_size=16)
    narrow, exact = layer(moe, 16).to(torch.bfloat16), layer(moe, 16)
    exact.load_state_dict({name: each.double() for name, each in narrow.state_dict().items()})
    inputs = hidden(size=16, dtype=torch.bfloat16)
    ours, theirs = narrow(inputs)[0], exact(inputs.double())[0]
    assert ours.dtype == torch.bfloat16
    assert float((ours.double() - theirs).norm() / theirs.norm()) < 0.02
    ours.float().square().sum().backward()
    theirs.square().sum().backward()
    for (name, one), other in zip(narrow.named_parameters(), exact.parameters(), strict=True):
        assert one.grad is not None, name
        assert other.grad is not None, name
        assert float((one.grad.double() - other.grad).norm() / other.grad.norm()) < 0.05, name


def test_no_row_is_lost_whatever_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tokens to one expert, and each token to all experts."""
    made = Experts(8, QWEN).double()
    rows = hidden().flatten(0, 1)
    one = torch.zeros(len(rows), 1, dtype=torch.int64) + 5
    gate, up = made.gate_up[5].chunk(2)
    expected = (F.silu(rows @ gate.T) * (rows @ up.T)) @ made.down[5].T
    assert torch.allclose(made(rows, torch.ones(len(rows), 1, dtype=torch.float64), one), expected, atol=1e-12)
    every = torch.arange(8).expand(len(rows), 8)
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.stack([row[torch.randperm(8, generator=generator)] for row in every])
    weights = torch.full((len(rows), 8), 0.25, dtype=torch.float64)
    assert torch.allclose(made(rows, weights, every), made(rows, weights, shuffled), atol=1e-12)
    calls: list[Any] = []
    monkeypatch.setattr(moe_module, "grouped_linear", lambda *given: calls.append(given) or grouped_linear(*given))
    made(rows, weights, shuffled)
    assert [len(rows_PD) for rows_PD, _, _ in calls] == [8 * len(rows)] * 2


CHOICES = {
    "random": torch.randint(0, 8, (23, 3), generator=torch.Generator().manual_seed(4)),
    "one token": torch.tensor([[6, 0, 3]]),
    "one token, one expert": torch.tensor([[7]]),
    "all to one": torch.full((19, 1), 2),
    "all to the last": torch.full((5, 1), 7),
    "first and last are empty": torch.tensor([[1, 6], [6, 2], [5, 1], [1, 2]]),
    "every expert": torch.stack([torch.randperm(8, generator=torch.Generator().manual_seed(n)) for n in range(6)]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("size", [16, 6])
def test_experts_equal_a_loop_over_pairs(name: str, dtype: torch.dtype, size: int) -> None:
    """Outputs and every gradient, at a width that torch's grouped product takes (16) and one for our loop alone (6)."""
    expert_NK = CHOICES[name]
    generator = torch.Generator().manual_seed(5)
    with torch.random.fork_rng():
        # With some weights a gradient cancels, and bfloat16 is off by more than a share of what is left.
        torch.manual_seed(0)
        made = Experts(size, replace(QWEN, expert_size=size)).to(dtype)
    hidden_ND = torch.randn(len(expert_NK), size, generator=generator).to(dtype).requires_grad_()
    weight_NK = torch.rand(expert_NK.shape, generator=generator).to(torch.promote_types(dtype, torch.float32))
    weight_NK.requires_grad_()
    tensors = (hidden_ND, weight_NK, made.gate_up, made.down)
    wide_ND, wide_NK, gate_up, down = wide = tuple(each.detach().double().requires_grad_() for each in tensors)
    rows = []
    for token, chosen in enumerate(expert_NK.tolist()):
        row = torch.zeros(size, dtype=torch.float64)
        for rank, expert in enumerate(chosen):
            gate, up = (gate_up[expert] @ wide_ND[token]).chunk(2)
            row = row + wide_NK[token, rank] * (down[expert] @ (F.silu(gate) * up))
        rows.append(row)
    slow = torch.stack(rows)
    ours = made(hidden_ND, weight_NK, expert_NK)
    assert ours.dtype == dtype
    seed = torch.randn(slow.shape, generator=generator).to(dtype)
    bound = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    results = (ours, *torch.autograd.grad(ours, tensors, seed))
    expected = (slow, *torch.autograd.grad(slow, wide, seed.double()))
    for one, other in zip(results, expected, strict=True):
        assert float((one.double() - other).norm()) <= bound * float(other.norm())
    untouched = [expert for expert in range(8) if not bool((expert_NK == expert).any())]
    for gradient in results[3:]:
        assert float(gradient[untouched].abs().sum()) == 0.0


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_the_grouped_product_needs_no_value_on_the_host(score: Any) -> None:
    """Tensors without values: reading one raises, which on a GPU would be a wait for it."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    moe = replace(LING, score=score, expert_size=16)
    narrow, exact = layer(moe, 16).to(torch.bfloat16), layer(moe, 16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = torch.randn(2, 9, 16, dtype=torch.bfloat16, requires_grad=True)
        out, _ = narrow(inputs)
        assert len(torch.autograd.grad(out.float().sum(), [inputs, *narrow.parameters()])) > 4
        with pytest.raises(DataDependentOutputException):
            exact(inputs.double())
