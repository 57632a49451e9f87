"""How far the prediction of a row is from a teacher's: both heads in chunks, so that no [M, V] ever exists.

Shape legend: see `difflm.types`; C rows of one chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from difflm.diffusion.scores import HeadRows, head_logits, through_head
from difflm.types import Divergence, TokenScores


class _ChunkedDivergence(torch.autograd.Function):
    """Forward keeps no logits; backward computes those of both sides again, chunk by chunk; none for the teacher."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        head_VD: Tensor,
        teacher_MD: Tensor,
        target_M: Tensor,
        kind: Divergence,
        suppressed_V: Tensor | None,
        chunk: int,
        id_T: Tensor | None,
        row_TD: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.save_for_backward(hidden_MD, head_VD, teacher_MD, row_TD)
        ctx.kind, ctx.suppressed_V, ctx.chunk, ctx.id_T = kind, suppressed_V, chunk, id_T
        rows = None if id_T is None or row_TD is None else (id_T, row_TD)
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        spans = zip(hidden_MD.split(chunk), teacher_MD.split(chunk), target_M.split(chunk), strict=True)
        for hidden_CD, teacher_CD, target_C in spans:
            log_q, log_p = (
                head_logits(each, head_VD, suppressed_V, rows).log_softmax(-1) for each in (hidden_CD, teacher_CD)
            )
            best_C = log_q.argmax(-1)
            nll_C = -log_q.gather(1, target_C[:, None])[:, 0]
            agree_C = best_C == log_p.argmax(-1)
            parts.append((_divergence(log_p, log_q, kind), nll_C, best_C == target_C, agree_C))
        found = tuple(torch.cat(each) for each in zip(*parts, strict=True))
        ctx.mark_non_differentiable(*found[1:])
        return found  # type: ignore[return-value]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_MD, head_VD, teacher_MD, row_TD = ctx.saved_tensors
        rows = None if row_TD is None else (ctx.id_T, row_TD)
        grad_value = grads[0]
        assert grad_value is not None
        grad_hidden = torch.empty_like(hidden_MD)
        grad_head = torch.zeros_like(head_VD) if ctx.needs_input_grad[1] else None
        grad_rows = None if row_TD is None else torch.zeros_like(row_TD)
        for start in range(0, hidden_MD.shape[0], ctx.chunk):
            part = slice(start, start + ctx.chunk)
            log_q, log_p = (
                head_logits(each[part], head_VD, ctx.suppressed_V, rows).log_softmax(-1)
                for each in (hidden_MD, teacher_MD)
            )
            grad_logit = (_logit_gradient(log_p, log_q, ctx.kind) * grad_value[part, None]).to(hidden_MD.dtype)
            grad_hidden[part] = through_head(grad_logit, hidden_MD[part], head_VD, rows, grad_rows)
            if grad_head is not None:
                grad_head.add_(grad_logit.T @ hidden_MD[part])
        return grad_hidden, grad_head, None, None, None, None, None, None, grad_rows


def _divergence(log_p: Tensor, log_q: Tensor, kind: Divergence) -> Tensor:
    """Return the divergence of each row; a suppressed token has no mass on either side."""
    if kind == "kl":
        return (log_p.exp() * _difference(log_p, log_q)).sum(-1)
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def _difference(log_p: Tensor, log_q: Tensor) -> Tensor:
    return torch.where(log_p == -torch.inf, 0.0, log_p - log_q)


def _logit_gradient(log_p: Tensor, log_q: Tensor, kind: Divergence) -> Tensor:
    """Return d divergence / d logits of q, [C, V]."""
    p, q = log_p.exp(), log_q.exp()
    if kind == "kl":
        return q - p
    sign = 0.5 * torch.sign(q - p)
    return q * (sign - (q * sign).sum(-1, keepdim=True))


def score_against(
    hidden_MD: Tensor,
    head_VD: Tensor,
    teacher_MD: Tensor,
    target_M: Tensor,
    *,
    kind: Divergence,
    chunk: int = 512,
    suppressed_V: Tensor | None = None,
    rows: HeadRows | None = None,
) -> TokenScores:
    """Return the divergence from a teacher, differentiable in hidden and head; likelihood and hits without gradient.

    Peak extra memory is O(chunk * V), forward and backward; values and gradients do not depend on `chunk`.

    Args:
        hidden_MD: final hidden states of the rows to score.
        head_VD: weight of the head; the gradient of the teacher's use of it is left out.
        teacher_MD: final hidden states of the rows that predict the same tokens; constants.
        target_M: int64 token to score at each row.
        kind: "kl" or "tv", see `difflm.types.Divergence`.
        chunk: rows per matrix product.
        suppressed_V: bool, tokens that get probability 0 on both sides.
        rows: stand in for rows of the head on both sides; differentiable as the head is.

    Source: KL as distillation, TV as 1 - the acceptance of a draft under min(1, p / q): arXiv:2211.17192.
    """
    id_T, row_TD = (None, None) if rows is None else rows
    if not hidden_MD.shape[0]:
        empty, none = hidden_MD.sum(-1).float(), torch.zeros(0, dtype=torch.bool, device=hidden_MD.device)
        zero = empty.detach()
        return TokenScores(nll_M=zero, entropy_M=zero, correct_M=none, divergence_M=empty, agree_M=none)
    value_M, nll_M, correct_M, agree_M = _ChunkedDivergence.apply(
        hidden_MD, head_VD, teacher_MD.detach(), target_M, kind, suppressed_V, chunk, id_T, row_TD
    )
    return TokenScores(
        nll_M=nll_M,
        entropy_M=torch.zeros_like(nll_M),
        correct_M=correct_M,
        divergence_M=value_M,
        agree_M=agree_M,
    )
