"""Confidence-aware training: fewer forwards per token by sharper predictions where the model is right already.

Shape legend: see `difflm.types`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from difflm.diffusion.noise import RowNoise
from difflm.diffusion.objectives import BlockDiffusion
from difflm.errors import ConfigError
from difflm.types import Batch, ModelInput, TokenScores

ConfidenceNormaliser = Literal["correct", "masked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceAware:
    """Eq. 6: L = L_SFT + weight * sum of H(softmax(z / T)) over masked tokens whose arg-max is the target / count.

    Which tokens are right carries no gradient, and neither does their number.

    Attributes:
        base: L_SFT.
        weight: lambda, the coefficient of the entropy.
        temperature: T of the entropy; the likelihood and the arg-max know none.
        normaliser: "correct": the tokens that are right, in all micro-batches (and ranks) of the step together, known
            only after the forwards; with several micro-batches the trainer counts them in forwards without gradient.
            "masked": the masked tokens, known before; the entropy then grows in weight as the model learns.

    Source: LLaDA2.0 (arXiv:2512.15745) Eq. 6, which gives neither lambda nor a temperature: 2.0 and 1.0 are those that
        the authors' trainer recommends, its mean over the right tokens is "correct".
    """

    base: BlockDiffusion
    weight: float = 2.0
    temperature: float = 1.0
    normaliser: ConfidenceNormaliser = "correct"

    def __post_init__(self) -> None:
        """Refuse what is not defined."""
        for name, value in (("weight", self.weight), ("temperature", self.temperature)):
            if value <= 0:
                raise ConfigError(
                    f"objective.confidence.{name}: {value} is not above 0; leave the section out for none"
                )

    def prepare(self, batch: Batch, *, mask_id: int | None, noise: RowNoise) -> ModelInput:
        """Return the base's input, with the entropy of its masked rows as one more term."""
        return self.extended(self.base.prepare(batch, mask_id=mask_id, noise=noise))

    def extended(self, inputs: ModelInput) -> ModelInput:
        """Return an input of the base with the entropy of its masked rows as one more term."""
        first = replace(inputs.terms[0], temperature=self.temperature)
        masked, counted = float(first.row_M.numel()), self.normaliser == "correct"
        confidence = replace(
            first,
            name="confidence",
            weight_M=torch.ones_like(first.weight_M),
            count=torch.tensor(0.0 if counted else masked, dtype=torch.float64),
            scale=self.weight,
            scores_of=0,
            counts_correct=counted,
        )
        return replace(inputs, terms=(first, *inputs.terms[1:], confidence))

    def loss(self, scores: tuple[TokenScores, ...], inputs: ModelInput) -> tuple[Tensor, ...]:
        """Return the base's sums and the summed entropy of the predictions that are right."""
        score = scores[-1]
        plain = replace(inputs, terms=inputs.terms[:-1])
        return (*self.base.loss(scores[:-1], plain), (score.entropy_M * score.correct_M).sum())
