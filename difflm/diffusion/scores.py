"""Scores of selected rows: the head applied in chunks, so that no [B, L, V] and no [M, V] ever exists.

Shape legend: see `difflm.types`; C rows of one chunk, T tokens whose row of the head is replaced.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from difflm.types import TokenScores

HeadRows = tuple[Tensor, Tensor]
"""(int64 token ids [T], rows [T, D]) that stand in for those of a head, whose own rows get no gradient there."""


def head_logits(hidden_CD: Tensor, head_VD: Tensor, suppressed_V: Tensor | None, rows: HeadRows | None) -> Tensor:
    """Return the logits of a chunk, [C, V], float32 at least; suppressed tokens at -inf."""
    logit_CV = F.linear(hidden_CD, head_VD)
    if rows is not None:
        logit_CV[:, rows[0]] = F.linear(hidden_CD, rows[1])
    # Softmax statistics need float32; float64 models (exactness tests) keep their precision.
    logit_CV = logit_CV if logit_CV.dtype == torch.float64 else logit_CV.float()
    return logit_CV if suppressed_V is None else logit_CV.masked_fill_(suppressed_V, -torch.inf)


def through_head(
    grad_CV: Tensor, hidden_CD: Tensor, head_VD: Tensor, rows: HeadRows | None, grad_rows_TD: Tensor | None
) -> Tensor:
    """Return the gradient of a chunk's hidden states, [C, D]; backward of `head_logits`, but for the head itself.

    Args:
        grad_CV: of the logits, in the head's dtype; the columns of replaced rows are cleared.
        hidden_CD: hidden states of the chunk.
        head_VD: weight of the head.
        rows: stand in for rows of the head.
        grad_rows_TD: what the gradient of `rows` is added to.
    """
    if rows is None or grad_rows_TD is None:
        return grad_CV @ head_VD
    replaced_CT = grad_CV[:, rows[0]]
    grad_rows_TD += replaced_CT.T @ hidden_CD
    grad_CV[:, rows[0]] = 0
    return grad_CV @ head_VD + replaced_CT @ rows[1]


class _ChunkedScores(torch.autograd.Function):
    """Forward keeps no logits; backward recomputes them chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        head_VD: Tensor,
        target_M: Tensor,
        suppressed_V: Tensor | None,
        chunk: int,
        entropy: bool,
        temperature: float,
        id_T: Tensor | None,
        row_TD: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(hidden_MD, head_VD, target_M, row_TD)
        ctx.suppressed_V, ctx.chunk, ctx.entropy, ctx.id_T = suppressed_V, chunk, entropy, id_T
        ctx.temperature = temperature
        rows = None if id_T is None or row_TD is None else (id_T, row_TD)
        nll, spread, correct = [], [], []
        for hidden_CD, target_C in zip(hidden_MD.split(chunk), target_M.split(chunk), strict=True):
            logit_CV = head_logits(hidden_CD, head_VD, suppressed_V, rows)
            total_C = logit_CV.logsumexp(-1)
            nll.append(total_C - logit_CV.gather(1, target_C[:, None])[:, 0])
            correct.append(logit_CV.argmax(-1) == target_C)
            if entropy:
                if temperature != 1.0:
                    logit_CV = logit_CV.div_(temperature)
                    total_C = logit_CV.logsumexp(-1)
                chance_CV = (logit_CV - total_C[:, None]).exp_()
                spread.append(total_C - (chance_CV * torch.nan_to_num(logit_CV, neginf=0.0)).sum(-1))
            else:
                spread.append(torch.zeros_like(total_C))
        return torch.cat(nll), torch.cat(spread), torch.cat(correct)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_MD, head_VD, target_M, row_TD = ctx.saved_tensors
        rows = None if row_TD is None else (ctx.id_T, row_TD)
        grad_rows = None if row_TD is None else torch.zeros_like(row_TD)
        nll_grad, spread_grad, _ = grads
        grad_hidden = torch.empty_like(hidden_MD)
        grad_head: Tensor | None = None
        for start in range(0, hidden_MD.shape[0], ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logit_CV = head_logits(hidden_MD[part], head_VD, ctx.suppressed_V, rows)
            warm = (logit_CV / ctx.temperature).log_softmax(-1) if ctx.entropy and ctx.temperature != 1.0 else None
            log_chance = logit_CV.sub_(logit_CV.logsumexp(-1, keepdim=True))
            chance = log_chance.exp()
            grad_logit = torch.zeros_like(chance)
            if ctx.entropy and spread_grad is not None:
                spread = chance if warm is None else warm.exp()
                finite = torch.nan_to_num(log_chance if warm is None else warm, neginf=0.0)
                entropy_C1 = -(spread * finite).sum(-1, keepdim=True)
                grad_logit.sub_(spread * (finite + entropy_C1) * (spread_grad[part, None] / ctx.temperature))
            if nll_grad is not None:
                scale = nll_grad[part, None]
                grad_logit.add_(chance.mul_(scale))
                grad_logit.scatter_add_(1, target_M[part, None], -scale.to(grad_logit.dtype))
            grad_logit = grad_logit.to(hidden_MD.dtype)
            grad_hidden[part] = through_head(grad_logit, hidden_MD[part], head_VD, rows, grad_rows)
            if ctx.needs_input_grad[1]:
                part_head = grad_logit.T @ hidden_MD[part]
                grad_head = part_head if grad_head is None else grad_head.add_(part_head)
        if grad_head is None and ctx.needs_input_grad[1]:
            grad_head = torch.zeros_like(head_VD)
        return grad_hidden, grad_head, None, None, None, None, None, None, grad_rows


def score_tokens(
    hidden_MD: Tensor,
    head_VD: Tensor,
    target_M: Tensor,
    *,
    chunk: int = 512,
    entropy: bool = False,
    temperature: float = 1.0,
    suppressed_V: Tensor | None = None,
    rows: HeadRows | None = None,
) -> TokenScores:
    """Return negative log-likelihood, entropy and correctness of the targets, differentiable in hidden and head.

    Peak extra memory is O(chunk * V), forward and backward; values and gradients do not depend on `chunk`.

    Args:
        hidden_MD: final hidden states of the rows to score.
        head_VD: weight of the head.
        target_M: int64 token to score at each row.
        chunk: rows per matrix product.
        entropy: also compute the entropy of the prediction, in nats.
        temperature: T of that entropy, of softmax(logits / T); the likelihood is always that of T = 1.
        suppressed_V: bool, tokens that get probability 0 (MASK in native decoding); losses and scores use raw logits.
        rows: stand in for rows of the head; differentiable.
    """
    id_T, row_TD = (None, None) if rows is None else rows
    nll_M, entropy_M, correct_M = _ChunkedScores.apply(
        hidden_MD, head_VD, target_M, suppressed_V, chunk, entropy, temperature, id_T, row_TD
    )
    return TokenScores(nll_M=nll_M, entropy_M=entropy_M, correct_M=correct_M)
