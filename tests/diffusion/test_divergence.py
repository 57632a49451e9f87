"""Divergences from a teacher in chunks equal full logits, values and gradients; the teacher gets none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from difflm.diffusion.divergence import score_against
from difflm.diffusion.scores import score_tokens


def numbers(*, suppress: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, teacher = (torch.randn(23, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    head = torch.randn(11, 6, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 10, (23,), generator=generator)
    banned = torch.zeros(11, dtype=torch.bool)
    banned[10] = suppress
    return hidden.requires_grad_(), head.requires_grad_(), teacher.requires_grad_(), target, banned


@pytest.mark.parametrize("kind", ["kl", "tv"])
@pytest.mark.parametrize("suppress", [False, True])
def test_equal_to_loops_over_full_distributions(kind: Any, suppress: bool) -> None:
    hidden, head, teacher, target, banned = numbers(suppress=suppress)
    weight = torch.rand(23, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # A suppressed token is one that does not exist.
    some = head[:10] if suppress else head
    q, p = (hidden @ some.T).softmax(-1), (teacher @ some.detach().T).softmax(-1).detach()
    rows = []
    for p_V, q_V in zip(p, q, strict=True):
        terms = [
            a * (a.log() - b.log()) if kind == "kl" else 0.5 * (a - b).abs() for a, b in zip(p_V, q_V, strict=True)
        ]
        rows.append(torch.stack(terms).sum())
    expected = torch.stack(rows)
    grads = torch.autograd.grad((weight * expected).sum(), (hidden, head))
    for chunk in (1, 7, 100):
        found = score_against(hidden, head, teacher, target, kind=kind, chunk=chunk, suppressed_V=banned)
        assert found.divergence_M is not None
        assert found.agree_M is not None
        assert torch.allclose(found.divergence_M, expected)
        plain = score_tokens(hidden, head, target, suppressed_V=banned)
        assert torch.allclose(found.nll_M, plain.nll_M)
        assert torch.equal(found.correct_M, plain.correct_M)
        assert torch.equal(found.agree_M, q.argmax(-1) == p.argmax(-1))
        assert not found.nll_M.requires_grad
        mine = torch.autograd.grad((weight * found.divergence_M).sum(), (hidden, head, teacher), allow_unused=True)
        assert mine[2] is None
        for one, other in zip(mine[:2], grads, strict=True):
            assert torch.allclose(one, other, atol=1e-10)


def test_limits() -> None:
    hidden, head, _, target, banned = numbers(suppress=False)
    point = hidden.detach()
    same = {kind: score_against(point, head.detach(), point, target, kind=kind).divergence_M for kind in ("kl", "tv")}  # type: ignore[arg-type]
    assert all(float(each.abs().max()) < 1e-12 for each in same.values() if each is not None)
    far = score_against(40 * point, head.detach(), -40 * point, target, kind="tv").divergence_M
    assert far is not None
    assert float(far.min()) > 0.99
    assert float(far.max()) <= 1 + 1e-12
    none = score_against(hidden[:0], head, hidden[:0], target[:0], kind="kl", suppressed_V=banned)
    assert none.divergence_M is not None
    none.divergence_M.sum().backward()
    assert none.nll_M.shape == (0,)


@pytest.mark.parametrize("kind", ["kl", "tv"])
def test_rows_that_stand_in_equal_a_head_with_them(kind: Any) -> None:
    hidden, head, teacher, target, _ = numbers(suppress=False)
    ids = torch.tensor([7, 3])
    rows = torch.randn(2, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
    found = score_against(hidden, head, teacher, target, kind=kind, chunk=5, rows=(ids, rows)).divergence_M
    dense = score_against(hidden, head.index_copy(0, ids, rows), teacher, target, kind=kind).divergence_M
    assert found is not None
    assert dense is not None
    assert torch.allclose(found, dense)
    grads = [torch.autograd.grad(each.sum(), (hidden, head, rows)) for each in (found, dense)]
    for one, other in zip(*grads, strict=True):
        assert torch.allclose(one, other, atol=1e-10)
