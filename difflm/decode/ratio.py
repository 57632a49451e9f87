"""The rule of speculative sampling: drafts are accepted by p / q, so that the text is distributed as without them.

Shape legend: see `difflm.types`; here M counts the predicted rows of all requests of a call, R those of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difflm.decode.drawing import Draw, gumbel, uniform
from difflm.decode.sampling import Candidates, Proposed, Rows, by_request, chosen

ACCEPTING, RESIDUAL, DRAFTING = 1, 2, 3
"""Streams of noise beside that of the tokens themselves: every use has numbers of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Accepts a draft x with probability min(1, p(x) / q(x)); else draws from max(0, p - q), normalised.

    p is the clean row's processed distribution (temperature, filters, penalties), q that of the MASK row from which x
    was drawn. A row that accepts proposes its draft, one that rejects another token, as p - q is not positive at x; so
    the first row whose proposal is not its draft is the first rejection. Rows without a draft draw from p.

    Source: arXiv:2211.17192, Algorithm 1. A draft that is q's arg-max is not drawn from q: q is then 1 at it.

    Attributes:
        draw: makes p and q.
        best: drafts are q's most probable tokens instead of draws.
    """

    draw: Draw
    best: bool = False
    random: bool = True
    entropy: bool = False

    @property
    def suppressed(self) -> tuple[int, ...]:
        """Ids that are never proposed."""
        return self.draw.suppressed

    @property
    def needs_history(self) -> bool:
        """Whether there are penalties."""
        return self.draw.needs_history

    def __call__(self, logits_MV: Tensor, rows: Sequence[Rows]) -> Proposed:
        """Return the tokens, and the probabilities that their rows give them."""
        probability_MV = self.draw.distribution(logits_MV, rows)
        parts = by_request(probability_MV, rows)
        token_M = torch.cat([self._tokens(part_RV, each) for part_RV, each in zip(parts, rows, strict=True)])
        return chosen(probability_MV, token_M)

    def processed(self, logits_MV: Tensor, rows: Sequence[Rows]) -> Tensor:
        """Return the logits with suppression, bias and penalties."""
        return self.draw.processed(logits_MV, rows)

    def draft(self, candidates: Candidates, rows: Sequence[Rows]) -> Proposed:
        """Return drafts from rows that are -inf but for the candidates; each row's q is kept behind its request's last.

        Args:
            candidates: of the rows.
            rows: whose, one each.
        """
        probability_MV = self.draw.distribution(candidates.spread(), rows)
        token_M = probability_MV.argmax(dim=-1)
        if not self.best:
            noise_MV = gumbel(rows, candidates.vocab_size, stream=DRAFTING).to(probability_MV.device)
            token_M = (probability_MV.double().log() + noise_MV).argmax(dim=-1)
        for each, part_RV in zip(rows, by_request(probability_MV, rows), strict=True):
            given = [each.memory["drafting"]] if "drafting" in each.memory else []
            each.memory["drafting"] = torch.cat([*given, part_RV])
        return chosen(probability_MV, token_M)

    def _tokens(self, probability_RV: Tensor, rows: Rows) -> Tensor:
        """Return the tokens of one request: checked drafts, the next token, new drafts."""
        checked = len(rows.drafts)
        draft_CV = rows.memory.pop("drafting", None)
        weight_RV = probability_RV.double()
        clean = weight_RV[: checked + 1]
        token_R = drawn(clean, rows, range(checked + 1), stream=0)
        if checked:
            assert draft_CV is not None, "drafts have distributions"
            token_R[:checked] = self._checked(clean[:checked], draft_CV[:checked].double(), rows)
        drafting_RV = weight_RV[checked + 1 :]
        if not len(drafting_RV):
            return token_R
        new_R = drafting_RV.argmax(dim=-1)
        if not self.best:
            new_R = drawn(drafting_RV, rows, range(checked + 1, len(weight_RV)), stream=DRAFTING)
        rows.memory["drafting"] = probability_RV[checked + 1 :]
        return torch.cat([token_R, new_R])

    def _checked(self, target_CV: Tensor, draft_CV: Tensor, rows: Rows) -> Tensor:
        """Return each draft, or the token that stands in for it."""
        draft_C = torch.tensor(rows.drafts, device=target_CV.device)
        if self.best:
            draft_CV = torch.zeros_like(draft_CV).scatter(1, draft_C[:, None], 1.0)
        target_C, given_C = (each.gather(1, draft_C[:, None])[:, 0] for each in (target_CV, draft_CV))
        uniform_C = torch.cat([uniform(rows, number, 1, stream=ACCEPTING) for number in range(len(draft_C))])
        # p >= u q, not p / q >= u: also right where a rounded q is 0.
        taken_C = target_C > uniform_C.to(target_C) * given_C
        # Where nothing is left, p is q, and the draft was accepted.
        other_C = drawn((target_CV - draft_CV).clamp(min=0.0), rows, range(len(draft_C)), stream=RESIDUAL)
        return torch.where(taken_C, draft_C, other_C)


def drawn(weight_RV: Tensor, rows: Rows, numbers: range, *, stream: int) -> Tensor:
    """Return a draw from each row of weights (need not sum to 1), by the noise of its position.

    Args:
        weight_RV: float64, not negative.
        rows: whose.
        numbers: of these rows among the request's.
        stream: of the noise.
    """
    noise_RV = gumbel([rows], weight_RV.shape[-1], numbers, stream=stream).to(weight_RV.device)
    return (weight_RV.log() + noise_RV).argmax(dim=-1)
