"""What a step or a validation pass measured beside its loss: sums and counts, by mask rate and by term.

A mask rate is the realised one of a block: masked positions / positions that the noise may mask. Blocks fall into ten
buckets, "0.0-0.1" (up to but without 0.1) to "0.9-1.0" (with 1.0). Figures of several micro-batches or steps are added
as sums and counts and divided once: never a mean of means.

Shape legend: see `difflm.types`; P flattened noisy rows [B * W], R buckets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from difflm.diffusion.masks import noisy_starts
from difflm.types import LossRows, ModelInput, TokenScores

RATE_BUCKETS = 10


def bucket_name(bucket: int) -> str:
    """Return the name of a mask-rate bucket, e.g. "0.3-0.4"."""
    return f"{bucket / RATE_BUCKETS:.1f}-{(bucket + 1) / RATE_BUCKETS:.1f}"


def rate_buckets(inputs: ModelInput) -> Tensor:
    """Return the mask-rate bucket of the block of each noisy row, int64 [B * W]; -1 where nothing could be masked.

    Args:
        inputs: of a masked objective (`maskable_BW` is given).
    """
    assert inputs.maskable_BW is not None, "only masked objectives have mask rates"
    maskable_BW = inputs.maskable_BW.cpu()
    unit_P = noisy_starts(inputs.layout).cpu().flatten().long().cumsum(0) - 1
    units = int(unit_P[-1]) + 1
    masked_P = inputs.masked_BN[:, : maskable_BW.shape[1]].cpu().flatten().long()
    masked_U = torch.zeros(units, dtype=torch.int64).index_add_(0, unit_P, masked_P)
    size_U = torch.zeros(units, dtype=torch.int64).index_add_(0, unit_P, maskable_BW.flatten().long())
    # In whole numbers: 3 of 10 is in "0.3-0.4", whatever 0.3 is in binary.
    bucket_U = (RATE_BUCKETS * masked_U // size_U.clamp(min=1)).clamp(max=RATE_BUCKETS - 1)
    return torch.where(size_U > 0, bucket_U, -1)[unit_P]


def masked_buckets(inputs: ModelInput, bucket_P: Tensor) -> Tensor:
    """Return the bucket of each row of the first term, int64 [M]: its rows are the masked ones, in order."""
    assert inputs.maskable_BW is not None, "only masked objectives have mask rates"
    return bucket_P[inputs.masked_BN[:, : inputs.maskable_BW.shape[1]].cpu().flatten()]


@dataclass(slots=True)
class RateSums:
    """Sums and counts of each mask-rate bucket.

    Attributes:
        sum_R: float64, nats.
        count_R: float64, tokens.
    """

    sum_R: Tensor = field(default_factory=lambda: torch.zeros(RATE_BUCKETS, dtype=torch.float64))
    count_R: Tensor = field(default_factory=lambda: torch.zeros(RATE_BUCKETS, dtype=torch.float64))

    def add(self, bucket_M: Tensor, value_M: Tensor) -> None:
        """Add values to the sums of their buckets."""
        self.sum_R.index_add_(0, bucket_M, value_M.detach().double().cpu())

    def count(self, bucket_M: Tensor) -> None:
        """Add one token for each bucket number."""
        self.count_R += torch.bincount(bucket_M, minlength=RATE_BUCKETS).double()

    def means(self) -> dict[str, float]:
        """Return sum / count of the buckets that have tokens, by name."""
        return {
            bucket_name(bucket): float(self.sum_R[bucket] / self.count_R[bucket])
            for bucket in range(RATE_BUCKETS)
            if self.count_R[bucket] > 0
        }

    def counts(self) -> dict[str, int]:
        """Return the tokens of the buckets that have any, by name."""
        return {
            bucket_name(bucket): int(self.count_R[bucket]) for bucket in range(RATE_BUCKETS) if self.count_R[bucket] > 0
        }


class NelboTally:
    """The NELBO of blocks by mask rate: weighted nats of a bucket's masked tokens / tokens of its blocks.

    The buckets' values, averaged with their tokens, are the NELBO.
    """

    def __init__(self) -> None:
        self.rates = RateSums()

    def add(self, inputs: ModelInput, scores: TokenScores) -> None:
        """Take in one forward: the first term of a masked objective; others are left out."""
        if inputs.maskable_BW is None:
            return
        term, bucket_P = inputs.terms[0], rate_buckets(inputs)
        bucket_M = masked_buckets(inputs, bucket_P)
        self.rates.add(bucket_M, term.weight_M.cpu() * scores.nll_M.detach().float().cpu())
        self.rates.count(bucket_P[inputs.maskable_BW.cpu().flatten()])


class StepTally:
    """What the micro-batches of one optimiser step add up to.

    `loss_by_mask_rate` is the plain negative log-likelihood per masked token, whatever the objective's weights.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, float] = {}
        self.scales: dict[str, float] = {}
        self.correct: dict[str, int] = {}
        self.scored: dict[str, int] = {}
        self.rates = RateSums()
        self.masked = self.maskable = 0
        self.counting = False  # there are normalisers that only a forward tells

    def expect(self, term: LossRows) -> None:
        """Take in a term's normaliser, before any forward: gradients are divided by the whole step's count."""
        self.counts[term.name] = self.counts.get(term.name, 0.0) + float(term.count)
        self.scales[term.name] = term.scale
        self.counting |= term.counts_correct

    def count(self, inputs: ModelInput, scores: tuple[TokenScores, ...]) -> None:
        """Take in the normalisers that a micro-batch's forward has to tell, before any gradient is divided by them."""
        for term, score in zip(inputs.terms, scores, strict=True):
            if term.counts_correct:
                self.counts[term.name] += float(score.correct_M.sum())

    def share(self, term: LossRows) -> float:
        """Return the factor that turns a term's sum into its part of the step's loss."""
        return term.scale / max(self.counts[term.name], 1.0)

    def add(self, inputs: ModelInput, scores: tuple[TokenScores, ...], sums: tuple[Tensor, ...]) -> None:
        """Take in one micro-batch.

        Args:
            inputs: of `Objective.prepare`.
            scores: of `score_input`, one per term.
            sums: of `Objective.loss`, nats, one per term.
        """
        for term, score, value in zip(inputs.terms, scores, sums, strict=True):
            name = term.name
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())
            if term.scores_of is not None:
                continue
            self.correct[name] = self.correct.get(name, 0) + int(score.correct_M.sum())
            self.scored[name] = self.scored.get(name, 0) + score.correct_M.numel()
        if inputs.maskable_BW is None:
            return
        bucket_M = masked_buckets(inputs, rate_buckets(inputs))
        self.rates.add(bucket_M, scores[0].nll_M)
        self.rates.count(bucket_M)
        self.masked += int(inputs.masked_BN.sum())
        self.maskable += int(inputs.maskable_BW.sum())

    def losses(self) -> dict[str, float]:
        """Return the normalised loss of each term, nats per counted token, before its coefficient."""
        return {name: value / max(self.counts[name], 1.0) for name, value in self.sums.items()}

    def row(self, *, block_size: int | None) -> dict[str, Any]:
        """Return the step's figures under the names of metrics.jsonl.

        Args:
            block_size: of the step, tokens; None for a next-token run, which has no figures of masks.
        """
        losses = self.losses()
        found: dict[str, Any] = {
            "loss": sum(self.scales[name] * value for name, value in losses.items()),
            "loss_by_term": losses,
            "accuracy_by_term": {name: hits / max(self.scored[name], 1) for name, hits in self.correct.items()},
        }
        if self.maskable:
            first = next(iter(self.counts))
            found |= {
                "loss_by_block_size": {str(block_size): losses[first]},
                "loss_by_mask_rate": self.rates.means(),
                "tokens_by_mask_rate": self.rates.counts(),
                "masked_accuracy": self.correct[first] / max(self.scored[first], 1),
                "mask_ratio": self.masked / self.maskable,
            }
        return found
