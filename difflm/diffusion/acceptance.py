"""What a denoising step proposes at its masked rows, and which of the proposals it keeps.

Shape legend: see `difflm.types`; here M counts the rows that are still masked.

Source: LLaDA2.0 report, section 5.4 (accept every token whose probability exceeds a threshold; if too few do,
accept a fixed number of the most probable). The comparison is strict, as in the released code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Acceptance(Protocol):
    """Which proposals of one step are kept. An instance is its own configuration."""

    def __call__(self, confidence_BS: Tensor, masked_BS: Tensor) -> Tensor:
        """Return bool [B, S]: positions to fill now; at least one per row that has a masked position."""
        ...


def propose(
    logits_MV: Tensor,
    *,
    suppressed_ids: Tensor | None = None,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (token_M, confidence_M): a token for each row, and its probability.

    At temperature 0 the token is the arg-max (lowest id among equals) and its confidence the softmax
    probability. At T > 0 it is drawn from softmax(logits / T) and its confidence is its probability there.
    One uniform number is drawn per row, in row order, so the generator's use does not depend on the vocabulary.

    Args:
        logits_MV: raw logits, one row per masked position. They are not changed.
        suppressed_ids: int64 [n] ids that must never be proposed: their logits become -inf before the softmax.
        temperature: T >= 0, dimensionless.
        generator: CPU generator of the request; needed when T > 0.
    """
    logits_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32))
    if suppressed_ids is not None and suppressed_ids.numel():
        logits_MV = logits_MV.index_fill(-1, suppressed_ids, -torch.inf)
    if temperature == 0.0:
        # The arg-max is taken of the logits: softmax may round two different ones to the same probability.
        token_M = logits_MV.argmax(dim=-1)
        probability_MV = logits_MV.softmax(dim=-1)
    else:
        assert generator is not None, "sampling needs the request's generator"
        # The maximum goes first: a tiny temperature must not overflow.
        probability_MV = ((logits_MV - logits_MV.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)
        token_M = _inverse_transform(probability_MV, generator)
    return token_M, probability_MV.gather(-1, token_M[:, None])[:, 0]


def _inverse_transform(probability_MV: Tensor, generator: torch.Generator) -> Tensor:
    """Return the token at which the cumulative probability first exceeds a uniform number; never one of mass 0."""
    cumulative_MV = probability_MV.double().cumsum(dim=-1)
    total_M = cumulative_MV[:, -1]
    uniform_M = torch.rand(len(total_M), dtype=torch.float64, generator=generator).to(total_M.device)
    # Rounding may lift u * total to the total itself, beyond the last token.
    point_M = torch.minimum(uniform_M * total_M, torch.nextafter(total_M, torch.zeros_like(total_M)))
    # A row of NaN points beyond the last token; its confidence is NaN, by which the caller sees it.
    return torch.searchsorted(cumulative_MV, point_M[:, None], right=True)[:, 0].clamp(max=cumulative_MV.shape[-1] - 1)


def accept(confidence_BS: Tensor, masked_BS: Tensor, *, threshold: float, min_accept: int = 1) -> Tensor:
    """Return bool [B, S]: the masked positions whose confidence is strictly above the threshold.

    Where fewer than `min_accept` of a row qualify, its `min_accept` most confident masked positions are taken
    instead (a superset; lowest index among equals; all of them if there are fewer). No host synchronisation.

    Args:
        confidence_BS: probability of each position's proposal, in [0, 1]; ignored where nothing is masked.
        masked_BS: bool, positions that are still masked.
        threshold: probability; a value of 1 or more leaves one token per step (`min_accept` of them).
        min_accept: positions to fill per row and step, at least 1.
    """
    ranked_BS = torch.where(masked_BS, confidence_BS, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    rank_BS = torch.empty_like(ranked_BS).scatter_(
        -1, ranked_BS, torch.arange(ranked_BS.shape[-1], device=ranked_BS.device).expand_as(ranked_BS).contiguous()
    )
    high_BS = masked_BS & (confidence_BS > threshold)
    enough_B1 = high_BS.sum(dim=-1, keepdim=True) >= min_accept
    return torch.where(enough_B1, high_BS, masked_BS & (rank_BS < min_accept))


@dataclass(frozen=True, slots=True)
class ThresholdAcceptance:
    """Native rule of difflm: strict threshold with a floor of `min_accept` tokens per step (see `accept`).

    Attributes:
        threshold: probability, >= 0; 1 or more decides `min_accept` tokens per step.
        min_accept: tokens decided per step at least.
    """

    threshold: float
    min_accept: int = 1

    def __call__(self, confidence_BS: Tensor, masked_BS: Tensor) -> Tensor:
        """Return `accept` under this threshold and floor."""
        return accept(confidence_BS, masked_BS, threshold=self.threshold, min_accept=self.min_accept)
