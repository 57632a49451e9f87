"""Preferences by the evidence lower bound: DPO with block diffusion's estimate of a likelihood.

Shape legend: see `difflm.types`; P pairs, K samples of the noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from difflm.diffusion.loss_rows import scorable
from difflm.diffusion.masks import block_numbers
from difflm.diffusion.noise import RowNoise, content_key
from difflm.diffusion.objectives import BlockDiffusion
from difflm.diffusion.shared import RowViews
from difflm.diffusion.views import drawn_views
from difflm.errors import ConfigError
from difflm.types import PADDING, Batch, BlockOrigin, ModelInput, PairRows, Parametrisation, TokenScores


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectPreference:
    """Eqs. 7-8: L = mean over pairs of -log sigmoid(beta * [(B - B_ref)(chosen) - (B - B_ref)(rejected)]).

    B(answer given prompt) = mean over K samples of sum over masked tokens of w * log p <= 0, the ELBO of Eq. 5 with
    exact-count masks. Policy and reference score the same masks. Both answers of a pair have the same noise: the k-th
    blocks of their answers the same time, tokens at the same place behind the prompt the same order of masking. It
    follows from what the pair says, the epoch and the seed, never from its row. All samples stand before one clean
    stream.

    Attributes:
        block_size: S in tokens; None, or S >= the row length, is one block per document.
        beta: scale of the difference, above 0.
        samples: K, draws of the noise; one where there is only one mask (block size 1).
        length_normalised: B is divided by the answer's tokens.
        block_origin: where blocks start counting on packed rows.
        parametrisation: logit shift and the attention inside clean and noisy streams.

    Source: LLaDA2.0 (arXiv:2512.15745) Eqs. 7-8 with the corrected sign (as printed, B >= 0 and the rejected answer is
        preferred); several samples on the same masks as the reference: VRPO (arXiv:2505.19223).
    """

    block_size: int | None
    beta: float = 0.1
    samples: int = 1
    length_normalised: bool = False
    block_origin: BlockOrigin = "document"
    parametrisation: Parametrisation = Parametrisation()

    def __post_init__(self) -> None:
        """Refuse what is not defined."""
        if self.beta <= 0:
            raise ConfigError(f"objective.beta: {self.beta} is not above 0; give the scale of the preference, e.g. 0.1")
        if self.samples < 1:
            raise ConfigError(f"objective.samples: {self.samples} is below 1; give a number of draws")

    def prepare(self, batch: Batch, *, mask_id: int | None, noise: RowNoise) -> ModelInput:
        """Return the samples of all answers before one clean stream, and which row is of which answer.

        Args:
            batch: rows of preference pairs.
            mask_id: the mask token.
            noise: seed.
        """
        base = BlockDiffusion(
            block_size=self.block_size,
            block_origin=self.block_origin,
            shared=True,
            parametrisation=self.parametrisation,
        )
        pairs = batch.pairs()
        # Twice the pair, and one more for its rejected answer; PADDING elsewhere.
        answer_BL = torch.where(pairs.chosen_BL != PADDING, 2 * pairs.chosen_BL, 2 * pairs.rejected_BL + 1)
        answer_BL = answer_BL.where(batch.document_BL != PADDING, PADDING)
        wanted_BL = scorable(batch, self.parametrisation)
        views = self._drawn(batch, answer_BL, wanted_BL, noise)
        inputs = base.laid_out(batch, views, mask_id=mask_id)
        count = torch.tensor(float(pairs.count), dtype=torch.float64)
        rows = PairRows(
            slot_M=_slots(inputs, views, answer_BL, self._draws),
            tokens_P2=torch.bincount(answer_BL[wanted_BL], minlength=2 * pairs.count).view(-1, 2),
            samples=self._draws,
        )
        return replace(inputs, terms=(replace(inputs.terms[0], name="preference", count=count),), pairs=rows)

    @property
    def _draws(self) -> int:
        return 1 if self.block_size == 1 else self.samples

    def _drawn(self, batch: Batch, answer_BL: Tensor, wanted_BL: Tensor, noise: RowNoise) -> RowViews:
        """Draw the masks of every answer, all samples of it."""
        rows, length = batch.token_BL.shape
        size = length if self.block_size is None else min(self.block_size, length)
        block_BL = block_numbers(batch.position_BL, block_size=size, origin=self.block_origin)
        masked_BKL = torch.zeros(rows, self._draws, length, dtype=torch.bool)
        weight_BKL = torch.zeros(rows, self._draws, length)
        for row in range(rows):
            keys = _pair_keys(batch.token_BL[row], answer_BL[row], epoch=int(batch.epoch_B[row]))
            for answer in answer_BL[row].unique().tolist():
                own_L = answer_BL[row] == answer
                place_N = (own_L & wanted_BL[row]).nonzero()[:, 0]
                if answer == PADDING or not len(place_N):
                    continue
                block_N = block_BL[row, place_N]
                found = drawn_views(
                    block_N - block_N[0], place_N - place_N[0], samples=self._draws, noise=noise, key=keys[answer // 2]
                )
                masked_BKL[row][:, place_N] = found.masked_WN
                weight_BKL[row][:, place_N] = found.weight_WN.float()
        index_R = torch.arange(rows).repeat_interleave(self._draws)
        view_R = torch.arange(self._draws).repeat(rows)
        return RowViews(index_R, view_R, masked_BKL.flatten(0, 1), weight_BKL.flatten(0, 1), wanted_BL[index_R])

    def elbos(self, scores: tuple[TokenScores, ...], inputs: ModelInput) -> Tensor:
        """Return B of each answer and sample, [P, 2, K], chosen first; nats, at most 0, differentiable in the scores.

        Args:
            scores: of the policy or the reference.
            inputs: of `prepare`.
        """
        pairs, [term], [score] = inputs.pairs, inputs.terms, scores
        assert pairs is not None, "an input of preference pairs"
        weighted_M = term.weight_M.to(score.nll_M.device) * score.nll_M
        total = weighted_M.new_zeros(pairs.tokens_P2.numel() * pairs.samples)
        total = total.index_add(0, pairs.slot_M.to(total.device), weighted_M)
        value_P2K = -total.view(*pairs.tokens_P2.shape, pairs.samples)
        return (
            value_P2K / pairs.tokens_P2.to(total.device).clamp(min=1)[..., None]
            if self.length_normalised
            else value_P2K
        )

    def advantages(self, scores: tuple[TokenScores, ...], inputs: ModelInput) -> Tensor:
        """Return B - B_ref of each answer and sample, [P, 2, K], nats."""
        assert inputs.reference_P2K is not None, "the reference has not scored this input"
        value_P2K = self.elbos(scores, inputs)
        return value_P2K - inputs.reference_P2K.to(value_P2K.device)

    def loss(self, scores: tuple[TokenScores, ...], inputs: ModelInput) -> tuple[Tensor, ...]:
        """Return the sum of -log sigmoid over pairs; `inputs.reference_P2K` is the reference's `elbos`."""
        gain_P2 = self.advantages(scores, inputs).mean(dim=2)
        return (-F.logsigmoid(self.beta * (gain_P2[:, 0] - gain_P2[:, 1])).sum(),)


def _pair_keys(token_L: Tensor, answer_L: Tensor, *, epoch: int) -> dict[int, int]:
    """Return a number for each pair of a row: what its answers say, whichever is preferred, and the epoch."""
    keys: dict[int, int] = {}
    for answer in answer_L.unique().tolist():
        if answer != PADDING:
            keys[answer // 2] = keys.get(answer // 2, 0) ^ content_key(token_L[answer_L == answer].tolist())
    return {pair: content_key((epoch, key)) for pair, key in keys.items()}


def _slots(inputs: ModelInput, views: RowViews, answer_BL: Tensor, samples: int) -> Tensor:
    """Return the answer and the sample of each scored row, as one number: answer * samples + sample."""
    assert inputs.maskable_BW is not None, "a masked objective"
    row, column = inputs.masked_BN[:, : inputs.maskable_BW.shape[1]].nonzero(as_tuple=True)
    layout = inputs.layout
    if layout.place_BW is None or layout.view_BW is None:
        return answer_BL[views.index_R[row], column] * samples + views.view_R[row]
    return answer_BL[row, layout.place_BW[row, column]] * samples + layout.view_BW[row, column]
