"""Muon against a slow explicit step in float64, against torch's for matrices, and slice by slice for stacks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from difflm.training.muon import Muon, orthogonal


def slow_orthogonal(matrix: Tensor) -> Tensor:
    """Return the Newton-Schulz result by the polynomial of each singular value, float64."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.pow(2).sum().sqrt().clamp(min=1e-7)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ torch.diag(values) @ right


@pytest.mark.parametrize("shape", [(12, 12), (20, 7), (7, 20)])
def test_steps_equal_the_explicit_ones(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape, generator=generator))
    slow, mean = parameter.detach().double(), torch.zeros(shape, dtype=torch.float64)
    muon = Muon([{"params": [parameter], "weight_decay": 0.1}], lr=0.02, momentum=0.9)
    for _ in range(3):
        gradient = torch.randn(shape, generator=generator)
        parameter.grad = gradient.clone()
        muon.step()
        mean = 0.9 * mean + 0.1 * gradient.double()
        update = slow_orthogonal(0.1 * gradient.double() + 0.9 * mean)
        slow = slow * (1 - 0.02 * 0.1) - 0.02 * 0.2 * max(shape) ** 0.5 * update
    # The iteration is in bfloat16: 2 to 3 digits of the update.
    largest = 3 * 0.02 * 0.2 * max(shape) ** 0.5
    torch.testing.assert_close(parameter.detach().double(), slow, atol=0.02 * largest, rtol=0)


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 9))
def test_a_matrix_moves_as_with_torch_bit_for_bit(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mine = nn.Parameter(torch.randn(rows, columns, generator=generator))
    theirs = nn.Parameter(mine.detach().clone())
    one = Muon([{"params": [mine], "weight_decay": 0.1}], lr=0.02, momentum=0.95)
    other = torch.optim.Muon([theirs], lr=0.02, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(2):
        mine.grad = torch.randn(rows, columns, generator=generator)
        theirs.grad = mine.grad.clone()
        one.step()
        other.step()
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("shape", [(3, 16, 24), (3, 24, 16), (1, 8, 8)])
def test_a_stack_is_its_matrices(shape: tuple[int, int, int]) -> None:
    stack = (
        torch.randn(shape, generator=torch.Generator().manual_seed(1))
        * torch.tensor([1.0, 50.0, 1e-3])[: shape[0], None, None]
    )
    made = orthogonal(stack)
    for index in range(shape[0]):
        torch.testing.assert_close(made[index], orthogonal(stack[index]), atol=0.02, rtol=0)
    values = torch.linalg.svdvals(made.float())
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.25


def test_an_expert_without_gradient_stays_and_nothing_becomes_nan() -> None:
    parameter = nn.Parameter(torch.ones(2, 4, 6))
    muon = Muon([{"params": [parameter], "weight_decay": 0.0}], lr=0.1)
    parameter.grad = torch.zeros(2, 4, 6)
    parameter.grad[1] = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    muon.step()
    assert torch.equal(parameter[0], torch.ones(4, 6))
    assert bool(torch.isfinite(parameter).all())
    assert not torch.equal(parameter[1], torch.ones(4, 6))


def test_the_scale_of_a_stack_is_that_of_its_matrices() -> None:
    """The count of experts is no dimension of a matrix: 64 small experts do not move as 64-wide matrices."""
    stack, single = nn.Parameter(torch.zeros(64, 4, 6)), nn.Parameter(torch.zeros(4, 6))
    gradient = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    stack.grad, single.grad = gradient.expand(64, 4, 6).clone(), gradient.clone()
    for parameter in (stack, single):
        Muon([{"params": [parameter], "weight_decay": 0.0}], lr=0.1).step()
    torch.testing.assert_close(stack[0], single, atol=1e-3, rtol=0.02)


@pytest.mark.parametrize("shape", [(10, 7), (3, 10, 7)])
def test_matrices_one_below_the_other_are_updated_apart(shape: tuple[int, ...]) -> None:
    """Gate and up projection of an expert share a tensor and are two maps."""
    joint = nn.Parameter(torch.zeros(shape))
    halves = [nn.Parameter(torch.zeros(*shape[:-2], 5, 7)) for _ in range(2)]
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    joint.grad = gradient.clone()
    for half, part in zip(halves, gradient.chunk(2, dim=-2), strict=True):
        half.grad = 8 * part.clone()  # the length of a gradient does not matter, if it is a matrix's own
    Muon([{"params": [joint], "weight_decay": 0.0, "parts": 2}], lr=0.1).step()
    Muon([{"params": halves, "weight_decay": 0.0}], lr=0.1).step()
    apart = torch.cat([each.detach() for each in halves], dim=-2)
    torch.testing.assert_close(joint.detach(), apart, atol=0.05 * 0.1 * 0.2 * 7**0.5, rtol=0)


def test_a_closure_is_called_with_gradients() -> None:
    parameter = nn.Parameter(torch.ones(2, 2))
    muon = Muon([{"params": [parameter], "weight_decay": 0.0}], lr=0.1)

    def closure() -> float:
        loss = parameter.square().sum()
        loss.backward()
        return loss.item()

    assert muon.step(closure) == 4.0
    assert not torch.equal(parameter, torch.ones(2, 2))
