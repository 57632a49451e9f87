"""The native rule: suppression, bias, penalties, temperature, filters, one draw a row.

Shape legend: see `difflm.types`; here M counts the predicted rows of all requests of a call, R those of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difflm.decode.sampling import Candidates, Proposed, Rows, by_request, chosen, filtered, tempered, widened
from difflm.diffusion.noise import RowNoise


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Arg-max at temperature 0, else one draw a row; the confidence is the probability in the processed distribution.

    In this order: suppressed ids and barred ends get no probability; the bias is added; penalties; division by the
    temperature; min-p, top-k, top-p. At temperature 0 nothing is filtered, and the confidence is the softmax's.
    Keyed draws take the noise of (seed, position), whatever was drawn before and by which forward, and the token at
    which log-probability plus Gumbel noise is largest: where two rows have similar distributions at one position, they
    mostly draw the same. Others take one uniform number per row from the request's generator, in row order.

    All rows of a forward are penalised alike, by the tokens that were decided before it, on either side of the row; a
    row behind drafts by those, too.

    Attributes:
        temperature: T >= 0, dimensionless.
        top_k: keep the k most probable tokens, and ties of the last; 0 keeps all.
        top_p: keep the most probable tokens until their sum exceeds it; 1 keeps all.
        min_p: keep tokens with at least this share of the most probable one's probability; 0 keeps all.
        repetition_penalty: logits of tokens in prompt or answer are divided by it where positive, else multiplied.
        presence_penalty: subtracted from the logits of tokens in the answer.
        frequency_penalty: the same, times how often they are there.
        logit_bias: (id, number added to its logit), ascending.
        suppressed: ids that must never be proposed: their logits become -inf before the softmax.
        entropy: whether to give the entropies.
        keyed: whether noise belongs to the position; for decoding left to right.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    suppressed: tuple[int, ...] = ()
    entropy: bool = False
    keyed: bool = False

    @property
    def random(self) -> bool:
        """Whether tokens are drawn."""
        return self.temperature > 0

    @property
    def needs_history(self) -> bool:
        """Whether there are penalties."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)

    def __call__(self, logits_MV: Tensor, rows: Sequence[Rows]) -> Proposed:
        """Return tokens and confidences."""
        if self.temperature == 0.0:
            logits_MV = self.processed(logits_MV, rows)
            # The arg-max is taken of the logits: softmax may round two different ones to the same probability.
            return chosen(logits_MV.softmax(dim=-1), logits_MV.argmax(dim=-1), entropy=self.entropy)
        probability_MV = self.distribution(logits_MV, rows)
        if self.keyed:
            noise_MV = gumbel(rows, probability_MV.shape[-1]).to(probability_MV.device)
            token_M = (probability_MV.double().log() + noise_MV).argmax(dim=-1)
        else:
            uniform = [torch.rand(len(each.places), dtype=torch.float64, generator=each.generator) for each in rows]
            token_M = inverse_transform(probability_MV, torch.cat(uniform).to(logits_MV.device))
        return chosen(probability_MV, token_M, entropy=self.entropy)

    def draft(self, candidates: Candidates, rows: Sequence[Rows]) -> Proposed:
        """Return what the rule says of rows that are -inf but for the candidates.

        Args:
            candidates: of the rows.
            rows: whose.
        """
        if self.random or self.needs_history or self.logit_bias or self.entropy:
            return self(candidates.spread(), rows)
        # The same without rows of the vocabulary's length.
        logit_MC = widened(candidates.logit_MC).masked_fill(candidates.never_MC, -torch.inf)
        best_M = logit_MC.argmax(dim=-1)
        answer = chosen(logit_MC.softmax(dim=-1), best_M)
        return Proposed(token_M=candidates.id_MC.gather(-1, best_M[:, None])[:, 0], confidence_M=answer.confidence_M)

    def distribution(self, logits_MV: Tensor, rows: Sequence[Rows]) -> Tensor:
        """Return the probabilities that are drawn from, [M, V]; the temperature is above 0."""
        logits_MV = self.processed(logits_MV, rows)
        # The maximum goes first: a tiny temperature must not overflow.
        scaled_MV = tempered(logits_MV - logits_MV.amax(dim=-1, keepdim=True), self.temperature)
        if self.min_p > 0:
            probability_MV = scaled_MV.softmax(dim=-1)
            least_M1 = self.min_p * probability_MV.amax(dim=-1, keepdim=True)
            scaled_MV = scaled_MV.masked_fill(probability_MV < least_M1, -torch.inf)
        return filtered(scaled_MV, self.top_k, self.top_p).softmax(dim=-1)

    def processed(self, logits_MV: Tensor, rows: Sequence[Rows]) -> Tensor:
        """Return the logits with suppression, bias and penalties, float32 at least; the given ones are not changed."""
        device = logits_MV.device
        logits_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32), copy=True)
        if self.suppressed:
            logits_MV[:, torch.tensor(self.suppressed, device=device)] = -torch.inf
        if self.logit_bias:
            index_I, bias_I = torch.tensor(self.logit_bias, dtype=torch.float64).T
            logits_MV[:, index_I.long().to(device)] += bias_I.to(logits_MV)
        for each, part_RV in zip(rows, by_request(logits_MV, rows), strict=True):
            if each.barred and each.ends:
                row_R1 = torch.tensor(each.barred, device=device)[:, None]
                part_RV[row_R1, torch.tensor(each.ends, device=device)] = -torch.inf
            if self.needs_history:
                self._penalise(part_RV, each)
        return logits_MV

    def _penalise(self, logits_RV: Tensor, rows: Rows) -> None:
        """Apply the penalties of one request in place."""
        if not rows.drafts:
            self._penalise_alike(logits_RV, rows.prompt, rows.generated)
            return
        for number, logits_V in enumerate(logits_RV):
            self._penalise_alike(logits_V[None], rows.prompt, [*rows.generated, *rows.drafts[:number]])

    def _penalise_alike(self, logits_RV: Tensor, prompt: Sequence[int], generated: Sequence[int]) -> None:
        """Apply the penalties of one history in place."""
        count = Counter(generated)
        if self.repetition_penalty != 1.0 and (seen := sorted({*prompt, *count})):
            index_I = torch.tensor(seen, device=logits_RV.device)
            known_RI = logits_RV[:, index_I]
            scaled_RI = torch.where(
                known_RI > 0, known_RI / self.repetition_penalty, known_RI * self.repetition_penalty
            )
            # A penalty near 0 makes infinities, or numbers that are none of what must not be proposed.
            scaled_RI = scaled_RI.clamp(max=torch.finfo(scaled_RI.dtype).max / 4)
            logits_RV[:, index_I] = torch.where(known_RI == -torch.inf, known_RI, scaled_RI)
        if count:
            index_I = torch.tensor(list(count), device=logits_RV.device)
            count_I = torch.tensor(list(count.values())).to(logits_RV)
            logits_RV[:, index_I] -= self.presence_penalty + self.frequency_penalty * count_I


def uniform(rows: Rows, number: int, count: int, *, stream: int = 0) -> Tensor:
    """Return the uniform numbers in (0, 1) of one row's position, float64 on the CPU.

    Args:
        rows: of a request.
        number: of the row among them.
        count: how many.
        stream: separates uses of one position.
    """
    generator = RowNoise(rows.seed).generator(rows.positions[number], stream)
    return torch.rand(count, dtype=torch.float64, generator=generator).clamp_(min=2.0**-54)


def gumbel(rows: Sequence[Rows], vocab_size: int, numbers: range | None = None, *, stream: int = 0) -> Tensor:
    """Return Gumbel noise for every row, [M, V], float64 on the CPU: that of its request's seed and its position.

    Args:
        rows: of the requests.
        vocab_size: numbers of a row.
        numbers: rows of each request; None is all.
        stream: separates uses of one position.
    """
    each = [
        uniform(one, number, vocab_size, stream=stream)
        for one in rows
        for number in (range(len(one.places)) if numbers is None else numbers)
    ]
    return -torch.log(-torch.log(torch.stack(each)))


def inverse_transform(probability_MV: Tensor, uniform_M: Tensor) -> Tensor:
    """Return the token at which the cumulative probability first exceeds a uniform number; never one of mass 0."""
    cumulative_MV = probability_MV.double().cumsum(dim=-1)
    total_M = cumulative_MV[:, -1]
    # Rounding may lift u * total to the total itself, beyond the last token.
    point_M = torch.minimum(uniform_M * total_M, torch.nextafter(total_M, torch.zeros_like(total_M)))
    # A row of NaN points beyond the last token; its confidence is NaN, by which the caller sees it.
    return torch.searchsorted(cumulative_MV, point_M[:, None], right=True)[:, 0].clamp(max=cumulative_MV.shape[-1] - 1)
