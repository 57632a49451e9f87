"""Objectives: what enters the model, which rows are scored, how the scores become a loss.

An objective is two halves around the forward. `prepare` needs no model and fixes the normaliser; `loss` returns sums.
The trainer divides the sums by counts reduced over all micro-batches and ranks: never a mean of means.

Shape legend: see `difflm.types`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from difflm.diffusion.context import context_weights
from difflm.diffusion.loss_rows import next_token_rows, prediction_rows, scorable, weighted_sums
from difflm.diffusion.masks import block_numbers, block_starts
from difflm.diffusion.noise import Bernoulli, ExactCount, FullMask, Noise, RowNoise, TimePer
from difflm.diffusion.shared import RowViews, shared_places, shared_tokens, standing
from difflm.errors import ConfigError
from difflm.types import (
    Batch,
    BlockOrigin,
    Layout,
    LossRows,
    ModelInput,
    Parametrisation,
    TokenScores,
)

Weighting = Literal["elbo", "uniform", "cart"]


class Objective(Protocol):
    """A training objective: a frozen dataclass, the instance is its own configuration."""

    def prepare(self, batch: Batch, *, mask_id: int | None, noise: RowNoise) -> ModelInput:
        """Return the model input of a batch and the rows to score; draws noise per row."""
        ...

    def loss(self, scores: tuple[TokenScores, ...], inputs: ModelInput) -> tuple[Tensor, ...]:
        """Return the weighted sum of each term of `inputs.terms`; divide by the (global) counts for the loss."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NextToken:
    """The autoregressive loss: mean over trainable tokens of -log p(token i+1 | tokens <= i).

    For AR parents and controls. The normaliser is the number of predicted tokens.
    """

    def prepare(self, batch: Batch, *, mask_id: int | None, noise: RowNoise) -> ModelInput:
        """Return a causal forward over the clean row; nothing is masked and no noise is drawn."""
        layout = Layout(document_BL=batch.document_BL, block_BL=batch.position_BL, causal_inside=True)
        return ModelInput(
            token_BN=batch.token_BL,
            position_BN=batch.position_BL,
            layout=layout,
            terms=(next_token_rows(batch, offset=0, row_length=batch.token_BL.shape[1]),),
            masked_BN=torch.zeros_like(batch.trainable_BL),
            row_B=batch.row_B,
            epoch_B=batch.epoch_B,
            view_B=torch.zeros_like(batch.row_B),
        )

    def loss(self, scores: tuple[TokenScores, ...], inputs: ModelInput) -> tuple[Tensor, ...]:
        """Return the summed negative log-likelihood."""
        return weighted_sums(scores, inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDiffusion:
    """Eq. 1 (block diffusion), Eq. 2 (one block: MDLM) and Eq. 5 (prompt clean, loss on the answer), one formula.

    L = sum over masked positions of w * -log p(token | clean earlier blocks, own noisy block) / count, w >= 0.
    Deviation: the report prints alpha'/(1 - alpha) without the minus that makes the weight non-negative.
    Eq. 5 is Eq. 1 on rows whose prompt positions are not trainable: they stay clean in the noisy stream.

    Attributes:
        block_size: S in tokens; None, or S >= the row length, is one block per document. Then the clean half is
            dropped (Eq. 2) unless an AR co-loss needs it. At S = 1 every trainable token is masked, weight 1.
        noise: how masks are drawn; `ExactCount` by default.
        time_per: positions that share a noise time: a "block" (default) or a "sequence" (document).
        weighting: "elbo" divides sum(w * nll) by trainable tokens; "uniform" sets w = 1 and divides by masked tokens;
            "cart" weighs a masked token by the visible tokens near it and divides by masked tokens.
        cart_p: parameter of the geometric fall-off of "cart".
        lookahead: see `Layout`; None outside an annealing.
        complementary: also train on the inverse mask of every row in the same batch, so that each trainable token is
            masked exactly once per pair. A block whose inverse is empty is dropped from it, tokens and count; so is a
            row without any mask left; none at block size 1. Under "elbo" a pair is an estimate of the ELBO only with
            `ExactCount`: with `Bernoulli` the first view keeps the tokens of its empty blocks, the second loses those
            of its own, so the pair weighs the loss up (by 1.1 at block 4).
        views: draws of the noise of each row in the same batch, each with its complement if there is one. The loss is
            their mean. At block size 1 all draws are the same, and one is made.
        shared: the views of a row stand before one clean stream, with the blocks alone in which something is counted;
            otherwise each view is a row [noisy | clean] of its own. Loss and gradients are the same.
        ar_weight: coefficient of the next-token loss on the clean stream (always shifted, own normaliser).
        block_origin: where blocks start counting on packed rows.
        parametrisation: logit shift and the attention inside clean and noisy streams.

    Source: LLaDA2.0 (arXiv:2512.15745) Eqs. 1, 2, 5; AR co-loss: arXiv:2607.05722.
    """

    block_size: int | None
    noise: Noise = ExactCount()
    time_per: TimePer = "block"
    weighting: Weighting = "elbo"
    cart_p: float = 0.1
    lookahead: int | None = None
    complementary: bool = False
    views: int = 1
    shared: bool = False
    ar_weight: float = 0.0
    block_origin: BlockOrigin = "document"
    parametrisation: Parametrisation = Parametrisation()

    def __post_init__(self) -> None:
        """Refuse combinations that would train on a leak or on a biased loss."""
        if self.block_size is not None and self.block_size < 1:
            raise ConfigError(f"objective.block_size: {self.block_size} is below 1; give the block size in tokens")
        if self.views < 1:
            raise ConfigError(f"objective.views: {self.views} is below 1; give a number of draws")
        if not 0.0 < self.cart_p <= 1.0:
            raise ConfigError(f"objective.cart_p: {self.cart_p} is not in (0, 1]; give a probability")
        if self.ar_weight < 0:
            raise ConfigError(f"objective.ar_weight: {self.ar_weight} is negative; use 0 to switch the co-loss off")
        if self.ar_weight > 0 and self.parametrisation.clean_attention != "causal":
            raise ConfigError(
                f"objective.ar_weight: {self.ar_weight} needs clean_attention 'causal', the model has "
                f"'{self.parametrisation.clean_attention}': a block-causal clean row sees its next token; "
                "convert with --clean-attention causal or set ar_weight to 0"
            )
        if isinstance(self.noise, Bernoulli) and self.noise.min_masks > 0 and self.weighting == "elbo":
            raise ConfigError(
                f"objective.min_masks: {self.noise.min_masks} biases the loss under weighting 'elbo'; "
                "use weighting 'uniform', or noise 'exact_count' (which leaves no block empty)"
            )

    def prepare(self, batch: Batch, *, mask_id: int | None, noise: RowNoise) -> ModelInput:
        """Return [noisy | clean] rows (or noisy rows alone) and the masked rows to score."""
        return self.laid_out(batch, self.drawn(batch, noise), mask_id=mask_id)

    def laid_out(self, batch: Batch, views: RowViews, *, mask_id: int | None) -> ModelInput:
        """Return the model input of a batch under masks that are there already."""
        if self.shared and self._two_streams(batch):
            places = shared_places(batch, self._blocks(batch), views.index_R, views.counted_RL)
            # One view of all blocks is [noisy | clean] already.
            if places[0].shape[1] < batch.token_BL.shape[1] or len(views.index_R) > len(batch.row_B):
                return self._shared(batch, views, places, mask_id)
        rows = batch.take(views.index_R)
        return self._assembled(rows, views.masked_RL, views.weight_RL, views.counted_RL, views.view_R, mask_id)

    def _two_streams(self, batch: Batch) -> bool:
        return self._size(batch) < batch.token_BL.shape[1] or self.ar_weight > 0

    def _layout(self, rows: Batch) -> Layout:
        return Layout(
            document_BL=rows.document_BL,
            block_BL=self._blocks(rows),
            two_streams=self._two_streams(rows),
            causal_inside=self.parametrisation.noisy_attention == "causal",
            clean_causal=self.parametrisation.clean_attention == "causal",
            lookahead=self.lookahead,
        )

    def _shared(self, batch: Batch, views: RowViews, places: tuple[Tensor, Tensor], mask_id: int | None) -> ModelInput:
        """Lay out the views of each row before its one clean stream."""
        assert mask_id is not None, "block diffusion needs a mask token"
        place_BW, own_BW = places
        layout = replace(self._layout(batch), place_BW=place_BW, view_BW=views.view_R[own_BW])
        masked_BW = standing(views.masked_RL, place_BW, own_BW, False)
        weight_RL = self._weights(batch.take(views.index_R), views.masked_RL, views.weight_RL)
        row, column = masked_BW.nonzero(as_tuple=True)
        place = place_BW[row, column]
        width, length = place_BW.shape[1], batch.token_BL.shape[1]
        term = LossRows(
            name="diffusion",
            row_M=prediction_rows(layout, row, column, shift=self.parametrisation.logit_shift),
            target_M=batch.token_BL[row, place],
            weight_M=weight_RL[own_BW[row, column], place],
            place_M=row * length + place,
            count=self._count(views.masked_RL, views.counted_RL),
        )
        token_BN, position_BN = shared_tokens(layout, batch, masked_BW, mask_id)
        clean = next_token_rows(batch, offset=width, row_length=width + length, scale=self.ar_weight)
        return ModelInput(
            token_BN=token_BN,
            position_BN=position_BN,
            layout=layout,
            terms=(term, clean) if self.ar_weight > 0 else (term,),
            masked_BN=torch.cat([masked_BW, torch.zeros_like(batch.trainable_BL)], dim=1),
            row_B=batch.row_B,
            epoch_B=batch.epoch_B,
            view_B=torch.zeros_like(batch.row_B),
            maskable_BW=standing(views.counted_RL, place_BW, own_BW, False),
        )

    def given(self, batch: Batch, masked_BL: Tensor, weight_BL: Tensor, *, mask_id: int | None) -> ModelInput:
        """Return what `prepare` does for masks that are not drawn but given, one view of each row.

        Args:
            batch: packed rows.
            masked_BL: bool, positions to mask; only such as `scorable` allows.
            weight_BL: weight of each of them.
            mask_id: the mask token.
        """
        view_B = torch.zeros_like(batch.row_B)
        return self._assembled(batch, masked_BL, weight_BL, scorable(batch, self.parametrisation), view_B, mask_id)

    def _blocks(self, batch: Batch) -> Tensor:
        return block_numbers(batch.position_BL, block_size=self._size(batch), origin=self.block_origin)

    def _size(self, batch: Batch) -> int:
        length = batch.token_BL.shape[1]
        return length if self.block_size is None else min(self.block_size, length)

    def _assembled(
        self,
        rows: Batch,
        masked_BL: Tensor,
        weight_BL: Tensor,
        counted_BL: Tensor,
        view_B: Tensor,
        mask_id: int | None,
    ) -> ModelInput:
        """Lay out the rows of all views and put together what is scored there."""
        assert mask_id is not None, "block diffusion needs a mask token"
        length = rows.token_BL.shape[1]
        layout = self._layout(rows)
        terms = (self._diffusion_rows(rows, layout, masked_BL, weight_BL, counted_BL),)
        if self.ar_weight > 0:
            # One AR term per row, not per view: the clean stream of both views is the same.
            first = rows.where(view_B == 0)
            terms += (next_token_rows(first, offset=length, row_length=2 * length, scale=self.ar_weight),)
        inputs = _model_input(rows, layout, masked_BL, view_B, terms, mask_id)
        return replace(inputs, maskable_BW=counted_BL)

    def loss(self, scores: tuple[TokenScores, ...], inputs: ModelInput) -> tuple[Tensor, ...]:
        """Return the weighted sums of the diffusion term and, with a co-loss, of the next-token term."""
        return weighted_sums(scores, inputs)

    def drawn(self, batch: Batch, noise: RowNoise) -> RowViews:
        """Return the masks of a batch's rows, drawn from their own generators."""
        block_BL, wanted_BL = self._blocks(batch), scorable(batch, self.parametrisation)
        source: Noise = FullMask() if self.block_size == 1 else self.noise
        unit_BL = block_starts(batch.document_BL, block_BL).long().cumsum(1) - 1
        group_BL = unit_BL if self.time_per == "block" else _document_groups(batch)
        pair = self.complementary and self.block_size != 1
        views: list[tuple[int, int, Tensor, Tensor, Tensor]] = []
        for position, (row, epoch) in enumerate(zip(batch.row_B.tolist(), batch.epoch_B.tolist(), strict=True)):
            wanted = wanted_BL[position]
            for draw in range(1 if self.block_size == 1 else self.views):
                first = draw * (1 + pair)
                drawn = source.draw(group_BL[position], wanted, noise.generator(row, epoch, -draw))
                views.append((position, first, drawn.masked_L, drawn.weight_L, wanted))
                rest = wanted & ~drawn.masked_L
                if pair and bool(rest.any()):
                    left_U = torch.zeros(int(unit_BL[position].max()) + 1, dtype=torch.bool)
                    left_U[unit_BL[position][rest]] = True
                    counted = wanted & left_U[unit_BL[position]]
                    views.append((position, first + 1, rest, drawn.complement_weight_L, counted))
        index, view, masked, weight, counted = zip(*views, strict=True)
        parts = (torch.stack(each) for each in (masked, weight, counted))
        return RowViews(torch.tensor(index), torch.tensor(view), *parts)

    def _weights(self, rows: Batch, masked_BL: Tensor, weight_BL: Tensor) -> Tensor:
        match self.weighting:
            case "elbo":
                return weight_BL
            case "uniform":
                return torch.ones(masked_BL.shape, device=rows.token_BL.device)
            case "cart":
                return context_weights(rows.document_BL, self._blocks(rows), masked_BL, p=self.cart_p)

    def _count(self, masked_BL: Tensor, counted_BL: Tensor) -> Tensor:
        return (counted_BL if self.weighting == "elbo" else masked_BL).sum().double().cpu()

    def _diffusion_rows(
        self, rows: Batch, layout: Layout, masked_BL: Tensor, weight_BL: Tensor, counted_BL: Tensor
    ) -> LossRows:
        length = rows.token_BL.shape[1]
        row, place = masked_BL.nonzero(as_tuple=True)
        weight_BL = self._weights(rows, masked_BL, weight_BL)
        return LossRows(
            name="diffusion",
            row_M=prediction_rows(layout, row, place, shift=self.parametrisation.logit_shift),
            target_M=rows.token_BL[row, place],
            weight_M=weight_BL[row, place].to(rows.token_BL.device),
            place_M=row * length + place,
            count=self._count(masked_BL, counted_BL),
        )


def _document_groups(batch: Batch) -> Tensor:
    start_BL = block_starts(batch.document_BL, torch.zeros_like(batch.document_BL))
    return start_BL.long().cumsum(1) - 1


def _model_input(
    rows: Batch, layout: Layout, masked_BL: Tensor, view_B: Tensor, terms: tuple[LossRows, ...], mask_id: int
) -> ModelInput:
    """Assemble [noisy | clean] (or the noisy rows alone) with positions repeated in both streams."""
    noisy_BL = torch.where(masked_BL, mask_id, rows.token_BL)
    token, position, masked = noisy_BL, rows.position_BL, masked_BL
    if layout.two_streams:
        token = torch.cat([noisy_BL, rows.token_BL], dim=1)
        position = torch.cat([position, position], dim=1)
        masked = torch.cat([masked_BL, torch.zeros_like(masked_BL)], dim=1)
    return ModelInput(
        token_BN=token,
        position_BN=position,
        layout=layout,
        terms=terms,
        masked_BN=masked,
        row_B=rows.row_B,
        epoch_B=rows.epoch_B,
        view_B=view_B,
    )
