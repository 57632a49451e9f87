"""Drafting: windows of masks behind any token of a row, learnt beside the next-token loss of the same weights.

What decoding does when it drafts: the text so far is clean and token-causal, a window of MASKs stands behind its last
token (the seed), and one forward predicts the window. Each window is a segment of its own; it sees the clean stream up
to its seed, which never sees it.

Shape legend: see `difflm.types`; A windows of a row, P their places, window by window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from difflm.diffusion.loss_rows import next_token_rows
from difflm.diffusion.masks import block_starts
from difflm.diffusion.noise import ExactCount, RowNoise
from difflm.errors import ConfigError
from difflm.types import PADDING, Batch, Layout, LossRows, ModelInput, Parametrisation, TokenScores

WindowNoise = Literal["masked", "uniform", "draft"]
DraftLoss = Literal["ce", "kl", "tv"]

WIDTH_STEP = 128
"""Noisy rows that a batch does not need are left out in steps of this many, so that few shapes occur."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafting:
    """Noisy windows at any anchor of a row, and the next-token loss on the clean stream.

    L = ar_weight * sum over clean rows of CE / trainable tokens
      + diffusion_weight * sum over scored places of windows of w * loss / places that could be scored.
    A window behind anchor a has the places a + 1 .. a + S, fewer at the end of its document. Anchors are tokens whose
    next one is trainable, drawn without replacement until the budget of noisy rows is used up (the last window is cut
    to fit); windows may overlap.
    With a logit shift the place a + 1 is read at the clean row a: it is the next-token prediction itself, and no part
    of the diffusion term. The row of the last place would predict nothing and is left out: S - 1 noisy rows a window.

    Attributes:
        window: S, places of a window: what one forward drafts.
        noise: "masked": all of a window. "uniform": k of its n places, k uniform on 1..n, weight n / k (`ExactCount`);
            the others are shown in the noisy stream. "draft": the states that drafting passes through: a clean
            beginning of random length, the rest masked. A window with a clean beginning is, on a token-causal clean
            stream, a shorter window behind a later anchor, and is trained as that: the places are 1..n, n uniform.
        draft_loss: "ce" against the token; "kl" or "tv" against the next-token distribution of the clean row that
            predicts the same token, which is a constant (`difflm.types.Divergence`).
        noisy_rows: budget of noisy rows for each row of the batch.
        ar_weight: coefficient of the next-token loss; 0 where the clean stream does not learn.
        diffusion_weight: coefficient of the loss on windows.
        parametrisation: logit shift, and the attention inside a window; the clean stream is token-causal.

    Source: arXiv:2607.05722 (weights 1 and 0.3; windows anywhere), arXiv:2604.11035 (fully masked, shifted).
    """

    window: int
    noise: WindowNoise = "masked"
    draft_loss: DraftLoss = "ce"
    noisy_rows: int = 256
    ar_weight: float = 1.0
    diffusion_weight: float = 0.3
    parametrisation: Parametrisation = Parametrisation(clean_attention="causal")

    def __post_init__(self) -> None:
        """Refuse a clean stream that sees ahead, and windows without a place to learn."""
        if self.parametrisation.clean_attention != "causal":
            raise ConfigError(
                "objective.kind: 'drafting' needs clean_attention 'causal', the model has "
                f"'{self.parametrisation.clean_attention}': windows start behind any token, and the AR loss would "
                "leak; convert with --clean-attention causal"
            )
        if self.window < self.first_place:
            why = ": with a logit shift the first place is the next-token prediction" if self.window == 1 else ""
            raise ConfigError(
                f"objective.window: {self.window} leaves nothing to learn{why}; give at least {self.first_place} tokens"
            )
        if self.noisy_rows < 1:
            raise ConfigError(f"objective.noisy_rows: {self.noisy_rows} is below 1; give a number of rows")
        for name, weight in (("ar_weight", self.ar_weight), ("diffusion_weight", self.diffusion_weight)):
            if weight < 0:
                raise ConfigError(f"objective.{name}: {weight} is negative; use 0 to leave the term out")

    @property
    def first_place(self) -> int:
        """Return the first place of a window, counted from its anchor, that is read at a noisy row."""
        return 2 if self.parametrisation.logit_shift else 1

    def prepare(self, batch: Batch, *, mask_id: int | None, noise: RowNoise) -> ModelInput:
        """Return [windows | clean] rows, the places of windows to score, and the next-token rows."""
        assert mask_id is not None, "drafting needs a mask token"
        keys = zip(batch.row_B.tolist(), batch.epoch_B.tolist(), strict=True)
        drawn = [self._draw(batch, row, noise.generator(*key)) for row, key in enumerate(keys)]
        used = max(len(each.anchor_W) for each in drawn)
        width = max(min(self.noisy_rows, -(-used // WIDTH_STEP) * WIDTH_STEP), 1)
        anchor_BW = torch.stack([_padded(each.anchor_W, width, PADDING) for each in drawn])
        offset_BW = torch.stack([_padded(each.offset_W, width, 0) for each in drawn])
        masked_BW = torch.stack([_padded(each.masked_W, width, True) for each in drawn])
        weight_BW = torch.stack([_padded(each.weight_W, width, 0.0) for each in drawn])
        seed_BW, real_BW = anchor_BW.clamp(min=0), anchor_BW != PADDING
        shown_BW = batch.token_BL.gather(1, seed_BW + offset_BW)
        layout = Layout(
            document_BL=batch.document_BL,
            block_BL=batch.position_BL,
            two_streams=True,
            causal_inside=self.parametrisation.noisy_attention == "causal",
            clean_causal=True,
            anchor_BW=anchor_BW,
        )
        length = batch.token_BL.shape[1]
        position_BW = torch.where(real_BW, batch.position_BL.gather(1, seed_BW) + offset_BW, 0)
        terms = (self._diffusion_rows(batch, anchor_BW, offset_BW, weight_BW),)
        if self.ar_weight > 0:
            terms += (next_token_rows(batch, offset=width, row_length=width + length, scale=self.ar_weight),)
        return ModelInput(
            token_BN=torch.cat([torch.where(masked_BW, mask_id, shown_BW), batch.token_BL], dim=1),
            position_BN=torch.cat([position_BW, batch.position_BL], dim=1),
            layout=layout,
            terms=terms,
            masked_BN=F.pad(masked_BW & real_BW, (0, length), value=False),
            row_B=batch.row_B,
            epoch_B=batch.epoch_B,
            view_B=torch.zeros_like(batch.row_B),
        )

    def loss(self, scores: tuple[TokenScores, ...], inputs: ModelInput) -> tuple[Tensor, ...]:
        """Return the weighted sums of the diffusion term and, with an AR weight, of the next-token term."""
        sums = list[Tensor]()
        for score, term in zip(scores, inputs.terms, strict=True):
            value_M = score.nll_M if score.divergence_M is None else score.divergence_M
            sums.append((term.weight_M.to(value_M.device) * value_M).sum())
        return tuple(sums)

    def _draw(self, batch: Batch, row: int, generator: torch.Generator) -> _Windows:
        """Draw the windows of one row."""
        document_L, last_L = batch.document_BL[row], _last_places(batch.document_BL[row])
        next_L = torch.zeros_like(batch.trainable_BL[row])
        next_L[:-1] = batch.trainable_BL[row, 1:] & (document_L[1:] == document_L[:-1])
        left_L = last_L - torch.arange(len(document_L))
        anchor_A = (next_L & (left_L >= self.first_place)).nonzero()[:, 0]
        anchor_A = anchor_A[torch.randperm(len(anchor_A), generator=generator)]
        size_A = torch.full_like(anchor_A, self.window)
        if self.noise == "draft":
            size_A = torch.randint(self.first_place, self.window + 1, anchor_A.shape, generator=generator)
        hidden = self.first_place - 1  # places that have no noisy row
        rows_A = torch.minimum(size_A, left_L[anchor_A]) - hidden
        before_A = rows_A.cumsum(0) - rows_A
        kept_A = before_A < self.noisy_rows
        anchor_A, rows_A = anchor_A[kept_A], torch.minimum(rows_A, self.noisy_rows - before_A)[kept_A]
        order_A = anchor_A.argsort()
        anchor_A, rows_A = anchor_A[order_A], rows_A[order_A]
        anchor_W = anchor_A.repeat_interleave(rows_A)
        place_A = rows_A + hidden
        window_P = torch.arange(len(place_A)).repeat_interleave(place_A)
        masked_P, weight_P = torch.ones_like(window_P, dtype=torch.bool), torch.ones(len(window_P))
        if self.noise == "uniform" and len(window_P):
            found = ExactCount().draw(window_P, masked_P, generator)
            masked_P, weight_P = found.masked_L, found.weight_L * found.masked_L
        offset_P = torch.arange(len(window_P)) - (place_A.cumsum(0) - place_A)[window_P] + 1
        entry_W = (offset_P <= rows_A[window_P]).nonzero()[:, 0]
        return _Windows(anchor_W, offset_P[entry_W], masked_P[entry_W], weight_P[entry_W + hidden])

    def _diffusion_rows(self, batch: Batch, anchor_BW: Tensor, offset_BW: Tensor, weight_BW: Tensor) -> LossRows:
        length, width = batch.token_BL.shape[1], anchor_BW.shape[1]
        place_BW = (anchor_BW + offset_BW + self.first_place - 1).clamp(0, length - 1)
        counted_BW = (anchor_BW != PADDING) & batch.trainable_BL.gather(1, place_BW)
        row, column = (counted_BW & (weight_BW > 0)).nonzero(as_tuple=True)
        place = place_BW[row, column]
        flat = row * (width + length)
        return LossRows(
            name="diffusion",
            row_M=flat + column,
            target_M=batch.token_BL[row, place],
            weight_M=weight_BW[row, column].to(batch.token_BL.device),
            place_M=row * length + place,
            count=counted_BW.sum().double().cpu(),
            scale=self.diffusion_weight,
            teacher_M=None if self.draft_loss == "ce" else flat + width + place - 1,
            divergence="tv" if self.draft_loss == "tv" else "kl",
            before_M=batch.token_BL[row, place - 1],
        )


@dataclass(frozen=True, slots=True)
class _Windows:
    """The noisy rows of one row: anchor, place counted from it, masked, weight of the place that the row predicts."""

    anchor_W: Tensor
    offset_W: Tensor
    masked_W: Tensor
    weight_W: Tensor


def _padded(value_W: Tensor, width: int, value: float | bool) -> Tensor:
    """Return the values behind padding: anchors ascend from there."""
    return F.pad(value_W, (width - len(value_W), 0), value=value)


def _last_places(document_L: Tensor) -> Tensor:
    """Return the last place of each token's document."""
    start_L = block_starts(document_L[None], torch.zeros_like(document_L)[None])[0]
    run_L = start_L.long().cumsum(0) - 1
    return torch.bincount(run_L).cumsum(0)[run_L] - 1


def draft_offsets(inputs: ModelInput) -> Tensor:
    """Return how far behind its anchor each place of the diffusion term stands, int64 [M], 1 for the next token."""
    term, anchor_BW = inputs.terms[0], inputs.layout.anchor_BW
    assert anchor_BW is not None, "an input of windows"
    length = inputs.layout.document_BL.shape[1]
    row_M, column_M = term.row_M // inputs.token_BN.shape[1], term.row_M % inputs.token_BN.shape[1]
    return term.place_M % length - anchor_BW[row_M, column_M]
