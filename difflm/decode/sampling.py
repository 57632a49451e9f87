"""How the logits of a row become a token and its confidence. Tensors, no decision about what is kept.

A rule is a frozen dataclass; requests with equal rules go through one call. Random rules draw from each request's own
CPU generator, so that a request's numbers do not depend on who decodes beside it.

Shape legend: see `difflm.types`; here M counts the predicted rows of all requests of the call.
"""

# Tensor.split() is partly untyped.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

LEAST_TEMPERATURE = 1e-30


@dataclass(slots=True, kw_only=True)
class Rows:
    """The rows of one request in a call of a rule, and what belongs to them.

    Attributes:
        places: positions in the block that the rows predict, ascending; their number is the number of rows.
        block_length: positions of the block.
        left: id of the token one position before each row's, -1 where that is outside the block.
        generator: of the request.
        prompt, generated: tokens so far, for penalties; empty unless the rule has some.
        barred: which of the rows must not end the generation (`min_tokens`).
        ends: ids that would.
        memory: what the rule keeps of the block; empty at its first forward.
        seed: of the request.
        positions: of the tokens that the rows predict, counted from the start of the prompt.
        drafts: tokens that the first rows verify: row i is behind the first i of them.
    """

    places: Sequence[int]
    block_length: int
    left: Sequence[int]
    generator: torch.Generator
    prompt: Sequence[int] = ()
    generated: Sequence[int] = ()
    barred: Sequence[int] = ()
    ends: Sequence[int] = ()
    memory: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    seed: int = 0
    positions: Sequence[int] = ()
    drafts: Sequence[int] = ()

    def part(self, start: int, stop: int) -> Rows:
        """Return rows `start` to `stop`, behind the same tokens as here; the memory is shared."""
        return replace(
            self,
            places=self.places[start:stop],
            left=self.left[start:stop],
            positions=self.positions[start:stop],
            barred=[number - start for number in self.barred if start <= number < stop],
            generated=[*self.generated, *self.drafts[:start]] if start else self.generated,
            drafts=self.drafts[start:],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposed:
    """The proposals of a call.

    Attributes:
        token_M: int64 ids.
        confidence_M: their probabilities.
        entropy_M: of the distributions that the confidences are from, nats; None unless the rule gives it.
    """

    token_M: Tensor
    confidence_M: Tensor
    entropy_M: Tensor | None = None

    def columns(self) -> Tensor:
        """Return float64 [2 or 3, M], in the order above; ids are exact in it."""
        given = (self.token_M, self.confidence_M, self.entropy_M)
        return torch.stack([each.double() for each in given if each is not None])


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The tokens of each row among which a draft is chosen.

    Attributes:
        id_MC: int64 ids, ascending in a row.
        logit_MC: raw logits.
        never_MC: those that must not be proposed.
        vocab_size: V.
    """

    id_MC: Tensor
    logit_MC: Tensor
    never_MC: Tensor
    vocab_size: int

    def spread(self) -> Tensor:
        """Return rows of logits, [M, V]: -inf but for the candidates."""
        empty_MV = self.logit_MC.new_full((len(self.logit_MC), self.vocab_size), -torch.inf)
        return empty_MV.scatter_(-1, self.id_MC, self.logit_MC)


class Rule(Protocol):
    """Proposes a token for each row. An instance is its own configuration; equal instances are batched."""

    @property
    def random(self) -> bool:
        """Whether equal inputs may give other tokens."""
        ...

    @property
    def suppressed(self) -> tuple[int, ...]:
        """Ids that are never proposed."""
        ...

    @property
    def needs_history(self) -> bool:
        """Whether `Rows.prompt` and `Rows.generated` are read."""
        ...

    @property
    def entropy(self) -> bool:
        """Whether entropies are given."""
        ...

    def __call__(self, logits_MV: Tensor, rows: Sequence[Rows]) -> Proposed:
        """Return the proposals. The logits are raw, of any float type, and are not changed."""
        ...


def widened(logits_MV: Tensor) -> Tensor:
    """Return the logits in float32 (float64 stays)."""
    return logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32))


def logprob_columns(logits_MV: Tensor, token_M: Tensor, top: int, suppressed: Sequence[int]) -> Tensor:
    """Return float64 [1 + 2 * top, M]: the token's log-probability, then id and log-probability of the best by turns.

    There are fewer than `top` where the vocabulary has no more that may be proposed.

    Args:
        logits_MV: raw logits.
        token_M: int64 ids.
        top: how many of the best.
        suppressed: ids that are left out of the softmax.
    """
    logits_MV = widened(logits_MV)
    if suppressed:
        logits_MV = logits_MV.index_fill(-1, torch.tensor(suppressed, device=logits_MV.device), -torch.inf)
    logprob_MV = logits_MV.log_softmax(dim=-1)
    best = logprob_MV.topk(min(top, logprob_MV.shape[-1] - len(set(suppressed))), dim=-1)
    pairs_MT2 = torch.stack([best.indices.double(), best.values.double()], dim=-1)
    return torch.cat([logprob_MV.gather(-1, token_M[:, None]).double(), pairs_MT2.flatten(1)], dim=1).T


def by_request(value_MV: Tensor, rows: Sequence[Rows]) -> list[Tensor]:
    """Return the rows of each request."""
    return list(torch.split(value_MV, [len(each.places) for each in rows]))


def chosen(probability_MV: Tensor, token_M: Tensor, *, entropy: bool = False) -> Proposed:
    """Return the tokens with their probabilities, and the entropies if they are asked for."""
    confidence_M = probability_MV.gather(-1, token_M[:, None])[:, 0]
    if not entropy:
        return Proposed(token_M=token_M, confidence_M=confidence_M)
    # 0 log 0 = 0
    entropy_M = -torch.xlogy(probability_MV, probability_MV).sum(dim=-1)
    return Proposed(token_M=token_M, confidence_M=confidence_M, entropy_M=entropy_M)


@dataclass(frozen=True, slots=True)
class Greedy:
    """The arg-max and its softmax probability; nothing is suppressed.

    Attributes:
        left_penalty: subtracted from the logit of the token at the position before, if that is in the block (SGLang).
    """

    left_penalty: float = 0.0
    random: bool = False
    suppressed: tuple[int, ...] = ()
    needs_history: bool = False
    entropy: bool = False

    def __call__(self, logits_MV: Tensor, rows: Sequence[Rows]) -> Proposed:
        """Return the arg-max (lowest id among equals; of the logits: softmax may round two to one) and its softmax."""
        logits_MV = widened(logits_MV)
        if self.left_penalty > 0:
            left_M = torch.tensor([token for each in rows for token in each.left], device=logits_MV.device)
            (row_R,) = (left_M >= 0).nonzero(as_tuple=True)
            logits_MV = logits_MV.clone()
            logits_MV[row_R, left_M[row_R]] -= self.left_penalty
        token_M = logits_MV.argmax(dim=-1)
        return chosen(logits_MV.softmax(dim=-1), token_M)


@dataclass(frozen=True, slots=True)
class Multinomial:
    """Draws as the code released with LLaDA2: temperature, top-k, top-p, then `torch.multinomial`.

    The confidence is the probability in the filtered distribution. The generator is used for every row given, so a
    policy that reproduces the released code asks for all rows of the block.

    Attributes:
        temperature: 0 and 1 leave the logits as they are (the released code divides by neither).
        top_k: keep logits not below the k-th largest; None and 0 keep all.
        top_p: keep the most probable tokens until their sum exceeds it; None and 1 keep all.
    """

    temperature: float
    top_k: int | None = None
    top_p: float | None = None
    random: bool = True
    suppressed: tuple[int, ...] = ()
    needs_history: bool = False
    entropy: bool = False

    def __call__(self, logits_MV: Tensor, rows: Sequence[Rows]) -> Proposed:
        """Return drawn tokens and their filtered probabilities."""
        logits_MV = widened(logits_MV)
        if self.temperature not in (0.0, 1.0):
            logits_MV = tempered(logits_MV, self.temperature)
        probability_MV = filtered(logits_MV, self.top_k, self.top_p).softmax(dim=-1)
        tokens: list[Tensor] = []
        for each, part_RV in zip(rows, by_request(probability_MV, rows), strict=True):
            # The generator lives on the CPU: a request's draws are the same on every device.
            drawn_R1 = torch.multinomial(part_RV.cpu(), 1, generator=each.generator)
            tokens.append(drawn_R1[:, 0].to(logits_MV.device))
        return chosen(probability_MV, torch.cat(tokens))


def tempered(logits_MV: Tensor, temperature: float) -> Tensor:
    """Return logits divided by a temperature.

    Beyond `LEAST_TEMPERATURE` and its inverse a distribution is the arg-max, or uniform; float32 holds no such divisor.

    Args:
        logits_MV: float32 or wider.
        temperature: above 0.
    """
    return logits_MV / min(max(float(temperature), LEAST_TEMPERATURE), 1 / LEAST_TEMPERATURE)


def filtered(logits_MV: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Return the logits with -inf where top-k, then top-p, drop a token.

    Args:
        logits_MV: scaled logits.
        top_k: tokens to keep; values equal to the k-th stay, too. None and 0 keep all.
        top_p: drop tokens whose more probable ones sum to more than this; the most probable one always stays.
    """
    if top_k:
        least_M1 = logits_MV.topk(min(top_k, logits_MV.shape[-1]), dim=-1).values[:, -1:]
        logits_MV = logits_MV.masked_fill(logits_MV < least_M1, -torch.inf)
    if top_p is not None and top_p < 1.0:
        sorted_MV, order_MV = logits_MV.sort(dim=-1, descending=True, stable=True)
        beyond_MV = sorted_MV.softmax(dim=-1).cumsum(dim=-1) > top_p
        beyond_MV[:, 1:] = beyond_MV[:, :-1].clone()
        beyond_MV[:, 0] = False
        logits_MV = logits_MV.masked_fill(beyond_MV.scatter(-1, order_MV, beyond_MV), -torch.inf)
    return logits_MV


@dataclass(frozen=True, slots=True)
class Gumbel:
    """Draws as dInfer: arg-max of the logits with Gumbel noise in float64; the confidence is that of the clean softmax.

    Attributes:
        temperature: strength of the noise; 0 takes the arg-max.
        credit_alpha, boost_gamma, decay_beta: weight, exponent and decay of the credit; alpha 0 is without. Each step
            a masked position credits its best token with p ** gamma, older credits fade by beta, and
            alpha * log(1 + credit) is added to the logits.
    """

    temperature: float = 0.0
    credit_alpha: float = 0.0
    boost_gamma: float = 0.2
    decay_beta: float = 0.8
    suppressed: tuple[int, ...] = ()
    needs_history: bool = False
    entropy: bool = False

    @property
    def random(self) -> bool:
        """Whether equal inputs may give other tokens: drawn ones, and those of a credit that has grown."""
        return self.temperature > 0 or self.credit_alpha > 0

    def __call__(self, logits_MV: Tensor, rows: Sequence[Rows]) -> Proposed:
        """Return the tokens and their probabilities in the softmax without noise."""
        logits_MV = widened(logits_MV)
        parts = by_request(logits_MV, rows)
        if self.credit_alpha > 0:
            parts = [self._credited(part_RV, each) for part_RV, each in zip(parts, rows, strict=True)]
            logits_MV = torch.cat(parts)
        noisy_MV = logits_MV
        if self.temperature > 0:
            noisy_MV = torch.cat([self._noised(part, each) for part, each in zip(parts, rows, strict=True)])
        token_M = noisy_MV.argmax(dim=-1)
        return chosen(logits_MV.softmax(dim=-1), token_M)

    def _credited(self, logits_RV: Tensor, rows: Rows) -> Tensor:
        shape = (rows.block_length, logits_RV.shape[-1])
        credit_SV = rows.memory.setdefault("credit", logits_RV.new_zeros(shape, dtype=torch.float32))
        credit_SV *= self.decay_beta
        best_R, token_R = logits_RV.softmax(dim=-1).max(dim=-1)
        place_R = torch.tensor(rows.places, device=logits_RV.device)
        credit_SV[place_R, token_R] += best_R.pow(self.boost_gamma).float()
        return logits_RV + self.credit_alpha * torch.log(credit_SV[place_R] + 1)

    def _noised(self, logits_RV: Tensor, rows: Rows) -> Tensor:
        uniform_RV = torch.rand(logits_RV.shape, dtype=torch.float64, generator=rows.generator).to(logits_RV.device)
        # The logarithm of exp(z) / (-log u) ** T: the same arg-max, without overflow.
        return logits_RV.double() - self.temperature * torch.log(-torch.log(uniform_RV))
