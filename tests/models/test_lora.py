"""Low-rank pairs against the dense weight W + scale B A, in outputs and gradients; off and gated rows, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from difflm.models.lora import Linear, LowRank, TokenRows, row_mask
from difflm.models.moe import Experts
from tests.models.test_moe import LING, hidden, layer


def noise(*shape: int, seed: int = 3) -> Tensor:
    return 0.4 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(*count: int, out: int, width: int, rank: int = 2, parts: int = 1, scale: float = 1.5) -> LowRank:
    a, b = noise(*count, parts * rank, width, seed=4), noise(*count, out, rank, seed=5)
    return LowRank(nn.Parameter(a), nn.Parameter(b), scale=scale, parts=parts)


def adapted_experts() -> Experts:
    experts = layer(LING).experts
    count, inner, size = LING.num_experts, LING.expert_size, 8
    experts.gate_up_lora = pair(count, out=2 * inner, width=size, parts=2)
    experts.down_lora = pair(count, out=size, width=inner)
    return experts


def routed() -> tuple[Tensor, Tensor, Tensor]:
    hidden_ND = hidden(3, 9).flatten(0, 1)
    weight_NK, expert_NK = layer(LING).router(hidden_ND)
    return hidden_ND, weight_NK.detach(), expert_NK


def experts_slowly(experts: Experts, hidden_ND: Tensor, weight_NK: Tensor, expert_NK: Tensor) -> Tensor:
    """Every token through each of its experts, gate, up and down each with a pair of its own."""
    first, second = experts.gate_up_lora, experts.down_lora
    assert first is not None
    assert second is not None
    inner, rank = LING.expert_size, 2
    rows = []
    for token, weights, chosen in zip(hidden_ND, weight_NK, expert_NK, strict=True):
        total = torch.zeros_like(token)
        for weight, expert in zip(weights, chosen.tolist(), strict=True):
            gate = experts.gate_up[expert, :inner] @ token
            gate = gate + first.scale * (first.b[expert, :inner] @ (first.a[expert, :rank] @ token))
            up = experts.gate_up[expert, inner:] @ token
            up = up + first.scale * (first.b[expert, inner:] @ (first.a[expert, rank:] @ token))
            mixed = F.silu(gate) * up
            out = experts.down[expert] @ mixed + second.scale * (second.b[expert] @ (second.a[expert] @ mixed))
            total = total + weight * out
        rows.append(total)
    return torch.stack(rows)


def test_a_linear_map_with_a_pair_is_the_map_of_w_plus_b_a_and_so_are_its_gradients() -> None:
    linear = Linear(8, 6, bias=True).double()
    linear.lora = pair(out=6, width=8)
    given = noise(4, 5, 8, seed=6).requires_grad_()
    out = linear(given)
    out.square().sum().backward()
    a, b = linear.lora.a.detach().clone().requires_grad_(), linear.lora.b.detach().clone().requires_grad_()
    same = given.detach().clone().requires_grad_()
    dense = F.linear(same, linear.weight.detach() + 1.5 * (b @ a), linear.bias.detach())
    dense.square().sum().backward()
    assert torch.allclose(out, dense, atol=1e-13)
    assert torch.allclose(linear.weight.detach() + linear.lora.delta(), linear.weight.detach() + 1.5 * (b @ a))
    for mine, theirs in ((linear.lora.a.grad, a.grad), (linear.lora.b.grad, b.grad), (given.grad, same.grad)):
        assert mine is not None
        assert theirs is not None
        assert torch.allclose(mine, theirs, atol=1e-12)


def test_experts_with_pairs_equal_the_loop_over_tokens_in_outputs_and_gradients() -> None:
    experts = adapted_experts()
    hidden_ND, weight_NK, expert_NK = routed()
    names = [name for name, _ in experts.named_parameters()]
    found, grads = [], []
    for run in (experts, lambda *given: experts_slowly(experts, *given)):
        out = run(hidden_ND, weight_NK, expert_NK)
        found.append(out)
        grads.append(torch.autograd.grad(out.square().sum(), list(experts.parameters())))
    assert torch.allclose(*found, atol=1e-12)
    for name, mine, theirs in zip(names, *grads, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-11), name


def test_experts_with_pairs_equal_experts_of_w_plus_b_a() -> None:
    experts = adapted_experts()
    merged = layer(LING).experts
    assert experts.gate_up_lora is not None
    assert experts.down_lora is not None
    with torch.no_grad():
        merged.gate_up.copy_(experts.gate_up + experts.gate_up_lora.delta())
        merged.down.copy_(experts.down + experts.down_lora.delta())
    assert torch.allclose(experts(*routed()), merged(*routed()), atol=1e-12)


def test_bfloat16_experts_with_pairs_are_near_float64() -> None:
    """The grouped product takes over: ranks that are no multiple of 8 as well as those that are."""
    for rank in (2, 8):
        experts = layer(LING, hidden_size=16).experts
        experts.gate_up_lora = pair(8, out=12, width=16, parts=2, rank=rank)
        experts.down_lora = pair(8, out=16, width=6, rank=rank)
        hidden_ND = hidden(3, 9, size=16).flatten(0, 1)
        _, weight_NK, expert_NK = routed()
        wide = experts(hidden_ND, weight_NK, expert_NK)
        narrow = experts.to(torch.bfloat16)(hidden_ND.bfloat16(), weight_NK.float(), expert_NK)
        assert float(((narrow.double() - wide).norm() / wide.norm()).detach()) < 0.03
        narrow.float().square().sum().backward()
        assert all(each.grad is not None and bool(each.grad.abs().sum() > 0) for each in experts.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_outside_the_gate_are_the_parent_s_bit_for_bit(dtype: torch.dtype) -> None:
    linear = Linear(8, 6, bias=True).to(dtype)
    plain = Linear(8, 6, bias=True).to(dtype)
    plain.load_state_dict(linear.state_dict())
    linear.lora = pair(out=6, width=8).to(dtype)
    given, rows = noise(2, 5, 8).to(dtype), torch.tensor([[True, False, True, False, False]] * 2)
    parent, everywhere, gated = plain(given), linear(given), linear(given, rows)
    assert torch.equal(linear(given, False), parent)
    assert torch.equal(gated[~rows], parent[~rows])
    assert torch.equal(gated[rows], everywhere[rows])
    assert not torch.equal(gated[rows], parent[rows])


def test_a_pair_that_is_not_finite_does_not_reach_rows_outside_the_gate() -> None:
    linear = Linear(8, 6, bias=False).double()
    linear.lora = pair(out=6, width=8)
    with torch.no_grad():
        linear.lora.b[0, 0] = torch.inf
    rows = torch.tensor([[False, True]])
    assert bool(torch.isfinite(linear(noise(1, 2, 8), rows)[~rows]).all())


RUNS = [slice(1, 4), slice(0, 1), slice(-2, None), slice(None), slice(2, 2), slice(3, 99)]


def mask_of(run: slice, rows: int = 2, length: int = 5) -> Tensor:
    inside = range(length)[run]
    return torch.tensor([[place in inside for place in range(length)]] * rows)


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_a_run_of_rows_is_the_mask_of_them_in_outputs_and_gradients(run: slice) -> None:
    found, grads = [], []
    for rows in (run, mask_of(run)):
        linear = Linear(8, 6, bias=True).double()
        linear.lora = pair(out=6, width=8)
        with torch.no_grad():
            linear.weight.copy_(noise(6, 8, seed=1))
            linear.bias.copy_(noise(6, seed=2))
        given = noise(2, 5, 8, seed=6).requires_grad_()
        before = given.detach().clone()
        out = linear(given, rows)
        found.append(out)
        grads.append(torch.autograd.grad(out.square().sum(), [given, *linear.parameters()]))
        assert torch.equal(given, before)
    assert torch.allclose(*found, atol=1e-13)
    assert torch.equal(found[0][~mask_of(run)], linear(given, False)[~mask_of(run)])
    assert all(torch.allclose(mine, theirs, atol=1e-12) for mine, theirs in zip(*grads, strict=True))


def test_of_a_run_of_rows_nothing_else_is_computed() -> None:
    linear, seen = Linear(8, 6, bias=False).double(), list[Tensor]()
    linear.lora = pair(out=6, width=8)
    linear.lora.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    given = noise(2, 5, 8)
    with torch.no_grad():
        linear.lora.b[0, 0] = torch.inf
    out = linear(given, slice(3, 5))
    assert torch.equal(seen[0], given[:, 3:5])
    assert bool(torch.isfinite(out[:, :3]).all())
    assert not bool(torch.isfinite(out[:, 3:, 0]).any())


def test_rows_of_an_adapter_as_a_mask() -> None:
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    for run in RUNS:
        found = row_mask(run, tokens)
        assert isinstance(found, Tensor)
        assert found.dtype == torch.bool
        assert torch.equal(found, mask_of(run))
    given = mask_of(slice(1, 3))
    assert row_mask(given, tokens) is given
    assert row_mask(True, tokens) is True
    assert row_mask(False, tokens) is False
    assert torch.equal(torch.as_tensor(row_mask(slice(1, 2), noise(2, 5, 8))), mask_of(slice(1, 2)))


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_a_run_of_rows_in_a_mixture_is_the_mask_of_them(run: slice) -> None:
    mixture, given = layer(LING), hidden(2, 5)
    mixture.experts.gate_up_lora = adapted_experts().gate_up_lora
    assert mixture.shared is not None
    mixture.shared.gate.lora = pair(out=10, width=8)
    found, masked, parent = (mixture(given, adapter=rows)[0] for rows in (run, mask_of(run), False))
    assert torch.allclose(found, masked, atol=1e-12)
    inside = mask_of(run)
    assert torch.equal(found[~inside], parent[~inside])
    assert not bool((found[inside] == parent[inside]).all(-1).any())


def test_the_gate_of_experts_goes_by_token() -> None:
    experts, parent = adapted_experts(), layer(LING).experts
    hidden_ND, weight_NK, expert_NK = routed()
    rows_N = torch.arange(len(hidden_ND)) % 3 == 0
    plain, everywhere = parent(hidden_ND, weight_NK, expert_NK), experts(hidden_ND, weight_NK, expert_NK)
    gated = experts(hidden_ND, weight_NK, expert_NK, rows_N)
    assert torch.equal(experts(hidden_ND, weight_NK, expert_NK, False), plain)
    assert torch.equal(gated[~rows_N], plain[~rows_N])
    assert torch.equal(gated[rows_N], everywhere[rows_N])
    assert not bool((gated[rows_N] == plain[rows_N]).all(-1).any())


def test_rows_of_the_embedding_are_put_in_where_their_token_stands() -> None:
    embedding = nn.Embedding(7, 4).double()
    rows = TokenRows((5, 2), nn.Parameter(noise(2, 4)))
    token = torch.tensor([[5, 1, 2, 5]])
    out = rows(embedding(token), token, True)
    assert torch.equal(out[0, [0, 3]], rows.weight[[0, 0]])
    assert torch.equal(out[0, 2], rows.weight[1])
    assert torch.equal(out[0, 1], embedding.weight[1])
    gated = rows(embedding(token), token, torch.tensor([[True, True, True, False]]))
    assert torch.equal(gated[0, 3], embedding.weight[5])
    assert torch.equal(rows(embedding(token), token, slice(0, 3)), gated)
    assert torch.equal(F.embedding(token, rows.placed(embedding.weight)), out)
    out.square().sum().backward()
    assert rows.weight.grad is not None
    assert torch.allclose(rows.weight.grad, 2 * rows.weight * torch.tensor([[2.0], [1.0]]))
