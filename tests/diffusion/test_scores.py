"""Chunked scores equal full logits, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from difflm.diffusion.scores import score_tokens


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("suppress", [False, True])
def test_equal_to_full_logits(chunk: int, suppress: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 10, (23,), generator=generator)
    left, right = torch.randn(2, 23, generator=generator, dtype=torch.float64)
    banned = torch.zeros(11, dtype=torch.bool)
    banned[10] = suppress
    scores = score_tokens(hidden, head, target, chunk=chunk, entropy=True, suppressed_V=banned if suppress else None)
    # A suppressed token is one that does not exist (masking with -inf would give the reference NaN gradients).
    logits = hidden @ (head[:10] if suppress else head).T
    log_chance = logits.log_softmax(-1)
    nll = F.nll_loss(log_chance, target, reduction="none")
    entropy = torch.special.entr(log_chance.exp()).sum(-1)
    assert torch.allclose(scores.nll_M, nll)
    assert torch.allclose(scores.entropy_M, entropy)
    assert torch.equal(scores.correct_M, logits.argmax(-1) == target)
    mine = torch.autograd.grad((left * scores.nll_M + right * scores.entropy_M).sum(), (hidden, head))
    full = torch.autograd.grad((left * nll + right * entropy).sum(), (hidden, head))
    for one, other in zip(mine, full, strict=True):
        assert torch.allclose(one, other, atol=1e-10)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_entropy_at_a_temperature_equals_full_logits(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 11, (9,), generator=generator)
    left, right = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    scores = score_tokens(hidden, head, target, chunk=4, entropy=True, temperature=temperature)
    logits = hidden @ head.T
    nll = F.cross_entropy(logits, target, reduction="none")  # knows no temperature
    entropy = torch.special.entr((logits / temperature).softmax(-1)).sum(-1)
    assert torch.allclose(scores.nll_M, nll)
    assert torch.allclose(scores.entropy_M, entropy)
    mine = torch.autograd.grad((left * scores.nll_M + right * scores.entropy_M).sum(), (hidden, head))
    full = torch.autograd.grad((left * nll + right * entropy).sum(), (hidden, head))
    for one, other in zip(mine, full, strict=True):
        assert torch.allclose(one, other, atol=1e-10)


def test_no_rows() -> None:
    hidden = torch.zeros(0, 6, requires_grad=True)
    head = torch.zeros(11, 6, requires_grad=True)
    scores = score_tokens(hidden, head, torch.zeros(0, dtype=torch.int64))
    scores.nll_M.sum().backward()
    assert scores.nll_M.shape == (0,)
    assert head.grad is not None
    assert float(head.grad.abs().sum()) == 0


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("suppress", [False, True])
def test_rows_that_stand_in_equal_a_head_with_them(chunk: int, suppress: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(2, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([7, 3])
    target = torch.randint(0, 10, (23,), generator=generator)
    banned = torch.arange(11) == (7 if suppress else 10)
    options = {"chunk": chunk, "entropy": True, "suppressed_V": banned}
    target[target == 7] = 3
    found = score_tokens(hidden, head, target, rows=(ids, rows), **options)  # type: ignore[arg-type]
    dense = score_tokens(hidden, head.index_copy(0, ids, rows), target, **options)  # type: ignore[arg-type]
    assert torch.equal(found.correct_M, dense.correct_M)
    grads = []
    for each in (found, dense):
        assert torch.allclose(each.nll_M, dense.nll_M)
        loss = each.nll_M.sum() + 0.3 * each.entropy_M.sum()
        grads.append(torch.autograd.grad(loss, (hidden, head, rows)))
    for one, other in zip(*grads, strict=True):
        assert torch.allclose(one, other, atol=1e-10)
    assert not bool(grads[0][1][ids].any())
    assert bool(grads[0][2][1].any())
