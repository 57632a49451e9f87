"""Values that cross the layers: rows of tokens, model inputs, scores.

Shape letters used all over the package:
    B rows          L tokens in a row       N tokens that enter the model (L, or 2L as [noisy | clean], or W + L)
    S block size    K blocks                V vocabulary size
    D hidden size   H heads                 M selected rows of a flattened [B * N] (masked positions)
    W noisy rows: L, or others where they are windows of a row or views of some of its blocks
"Block" always means a diffusion block; a tile of an attention kernel is a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(row, head, query, key) index tensors -> bool, True where the query sees the key (FlexAttention's contract)."""

CleanAttention = Literal["block", "causal"]
NoisyAttention = Literal["bidirectional", "causal"]
BlockOrigin = Literal["document", "row"]
Decoding = Literal["block", "next_token", "verified"]
"""Blocks of masks; left to right; left to right with drafts that are verified, which is the same text."""
Divergence = Literal["kl", "tv"]
"""Of two distributions p (the teacher's) and q: KL(p || q) = sum p (ln p - ln q) in nats, or half of sum |p - q|."""

PADDING = -1
"""Document id of padding: padding is a document of its own, so no attention row is ever empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Which tokens of packed rows belong to which preference pair, P pairs in all, numbered from 0 over the rows.

    Ids and labels are the batch's own: `token_BL`, and `trainable_BL` for what is learnt of either answer. Both
    answers repeat their prompt, which is given.

    Attributes:
        chosen_BL: int64, the pair whose chosen document a token belongs to, its prompt included; PADDING elsewhere.
        rejected_BL: int64, the pair whose rejected document a token belongs to; PADDING elsewhere.
        count: P.
    """

    chosen_BL: Tensor
    rejected_BL: Tensor
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Packed rows, as the data layer hands them to an objective.

    Attributes:
        token_BL: int64 token ids.
        document_BL: int64 document number inside the row (contiguous runs), PADDING (-1) for padding.
        position_BL: int64 position, restarting at 0 in each document.
        trainable_BL: bool, False for prompt and padding.
        row_B: int64 number of the row in the data; with seed and epoch it decides the row's noise.
        epoch_B: int64 pass over the data in which the row was drawn (a batch may cross the end of an epoch).
        paired: the rows hold preference pairs: documents 2k and 2k + 1 of a row are the chosen and the rejected answer
            to one prompt.
    """

    token_BL: Tensor
    document_BL: Tensor
    position_BL: Tensor
    trainable_BL: Tensor
    row_B: Tensor
    epoch_B: Tensor
    paired: bool = False

    def pairs(self) -> Pairs:
        """Return which tokens belong to which answer of which preference pair; the rows hold pairs."""
        assert self.paired, "only rows of preference pairs have two answers each"
        counts_B = torch.div(self.document_BL.amax(dim=1) + 1, 2, rounding_mode="floor")
        pair_BL = torch.div(self.document_BL, 2, rounding_mode="floor") + (counts_B.cumsum(0) - counts_B)[:, None]
        is_token_BL, second_BL = self.document_BL != PADDING, self.document_BL % 2 == 1
        return Pairs(
            chosen_BL=pair_BL.where(is_token_BL & ~second_BL, PADDING),
            rejected_BL=pair_BL.where(is_token_BL & second_BL, PADDING),
            count=int(counts_B.sum()),
        )

    def take(self, index_R: Tensor) -> Batch:
        """Return the rows `index_R` (repeats allowed)."""
        return Batch(
            token_BL=self.token_BL[index_R],
            document_BL=self.document_BL[index_R],
            position_BL=self.position_BL[index_R],
            trainable_BL=self.trainable_BL[index_R],
            row_B=self.row_B[index_R],
            epoch_B=self.epoch_B[index_R],
            paired=self.paired,
        )

    def where(self, kept_B: Tensor) -> Batch:
        """Return the batch with nothing trainable outside the rows `kept_B` (bool)."""
        return replace(self, trainable_BL=self.trainable_BL & kept_B[:, None])

    def num_tokens(self) -> int:
        """Return the tokens that are not padding."""
        return int((self.document_BL != PADDING).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Parametrisation:
    """How a block-diffusion model reads its rows; recorded in the checkpoint, honoured everywhere.

    The defaults are the paper's choice (LLaDA2.0, Eq. 3); an absent field in a checkpoint means them.

    Attributes:
        logit_shift: token i is predicted at row i-1 (True) or at row i (False).
        clean_attention: the clean stream is block-causal ("block", Eq. 3) or token-causal ("causal").
        noisy_attention: inside a noisy block rows see each other both ways or only backwards.
    """

    logit_shift: bool = False
    clean_attention: CleanAttention = "block"
    noisy_attention: NoisyAttention = "bidirectional"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Who may see whom, as facts about the row; mask predicates and the exact split both derive from it.

    With `two_streams` the model input is [noisy | clean] (N = 2L), otherwise one stream (N = L) in which a
    query sees earlier blocks and its own block of the same document.

    Attributes:
        document_BL: int64, contiguous runs, PADDING for padding.
        block_BL: int64, non-decreasing inside a document; only equality and order inside a document matter.
        two_streams: [noisy | clean] (Eq. 3) instead of a single stream.
        causal_inside: rows of one block see only earlier rows of it (single stream, or the noisy stream).
        clean_causal: the clean stream is token-causal instead of block-causal (two streams only).
        lookahead: how many positions ahead a query sees inside its block, wherever a block is seen both ways; None is
            the whole block, 0 the causal view. Widened step by step to anneal a causal model.
        anchor_BW: int64, given where the noisy stream is windows instead of the row's blocks (two streams and
            clean_causal only; N = W + L): for each noisy row the last clean row that it sees, as an index into the row;
            PADDING for padding. They ascend, so padding comes first. Rows of one anchor are a window: they see each
            other and no other window.
        place_BW, view_BW: int64, given where the noisy stream is some blocks of the row, in one or several views (two
            streams only; N = W + L): the place in the row that each noisy row stands for, PADDING for padding, and the
            view that it belongs to. Padding comes first, then the blocks in order, the views of a block one after
            another, all places of it in order. A noisy row sees its own block in its own view, and no other view.
    """

    document_BL: Tensor
    block_BL: Tensor
    two_streams: bool = False
    causal_inside: bool = False
    clean_causal: bool = False
    lookahead: int | None = None
    anchor_BW: Tensor | None = None
    place_BW: Tensor | None = None
    view_BW: Tensor | None = None

    def __post_init__(self) -> None:
        """Check that windows and views have a clean stream to stand on."""
        plain = self.two_streams and self.clean_causal and self.lookahead is None
        assert self.anchor_BW is None or plain, "windows see a token-causal clean stream"
        assert (self.place_BW is None) == (self.view_BW is None), "a row of a view has a place"
        assert self.place_BW is None or (self.two_streams and self.anchor_BW is None), "views see a clean stream"

    @property
    def stand_BW(self) -> Tensor | None:
        """Return the clean row on which each noisy row stands (its anchor or its place); None for [noisy | clean]."""
        return self.place_BW if self.anchor_BW is None else self.anchor_BW

    @property
    def noisy_length(self) -> int:
        """Return the rows of the noisy stream, which come first: W of windows or views, L of two streams, else 0."""
        stand_BW = self.stand_BW
        if stand_BW is not None:
            return stand_BW.shape[1]
        return self.document_BL.shape[1] if self.two_streams else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LossRows:
    """One term of a loss: which rows of the model's output predict which token, with which weight.

    Attributes:
        name: "diffusion", "ar", "confidence" or "preference"; the key under which the term is logged.
        row_M: int64 index into the flattened [B * N] rows of hidden states.
        target_M: int64 token id to be predicted there.
        weight_M: float32 weight of the row's negative log-likelihood, >= 0.
        place_M: int64 index into the flattened [B * L] positions: where the target stands.
        count: normaliser (number of tokens), known before the forward; float64 scalar.
        scale: coefficient of the normalised term in the total loss.
        teacher_M: int64 index like `row_M`: the row whose prediction, without gradient, each row is compared with;
            None: rows are scored against their targets alone.
        divergence: what the comparison measures.
        before_M: int64 token before each target: rows are scored as a model's draft head corrects them, if it has one;
            None: never.
        temperature: at which the entropy of each prediction is wanted as well; None: it is not.
        scores_of: number of an earlier term with the same rows, whose scores serve this one too; None: its own.
        counts_correct: the normaliser is the number of rows whose arg-max is the target; `count` is then 0, and the
            number is added up after the forward.
    """

    name: str
    row_M: Tensor
    target_M: Tensor
    weight_M: Tensor
    place_M: Tensor
    count: Tensor
    scale: float = 1.0
    teacher_M: Tensor | None = None
    divergence: Divergence = "kl"
    before_M: Tensor | None = None
    temperature: float | None = None
    scores_of: int | None = None
    counts_correct: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRows:
    """Which answer of which preference pair each scored row is of, P pairs with K samples of the noise.

    Attributes:
        slot_M: int64, (2 * pair + side) * K + sample of each row of the first term; side 0 is the chosen answer.
        tokens_P2: int64, tokens of each answer that could be scored.
        samples: K.
    """

    slot_M: Tensor
    tokens_P2: Tensor
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """What a forward needs, and what the loss needs after it.

    Attributes:
        token_BN: int64, [noisy | clean] or a single stream.
        position_BN: int64 positions, restarting in each document, the same in both streams.
        layout: attention structure.
        terms: the loss terms; rows outside them never pass through the head.
        masked_BN: bool, True where the input is a MASK put there by the noise (embedding noise goes there).
        row_B, epoch_B: int64, see `Batch`.
        view_B: int64, view of each row where every view is a row of its own; 0 where `layout.view_BW` says it.
        maskable_BW: bool, noisy rows that the noise could have masked and that the first term counts (mask rates are
            measured over them), W = L in a single stream; None for an objective without masks.
        pairs: of an objective that compares two answers; None for the others.
        reference_P2K: float32 [P, 2, K], what the reference gives the answers of `pairs`, a constant of the loss; None
            until it has scored them.
    """

    token_BN: Tensor
    position_BN: Tensor
    layout: Layout
    terms: tuple[LossRows, ...]
    masked_BN: Tensor
    row_B: Tensor
    epoch_B: Tensor
    view_B: Tensor
    maskable_BW: Tensor | None = None
    pairs: PairRows | None = None
    reference_P2K: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """Scores of selected rows. Units: nats.

    Attributes:
        nll_M: float32 negative log-likelihood of the target.
        entropy_M: float32 entropy of the prediction; zeros unless asked for.
        correct_M: bool, the arg-max is the target.
        divergence_M: float32, from the teacher's prediction (`LossRows.divergence`); then `nll_M` carries no gradient.
            None without a teacher.
        agree_M: bool, the arg-max is the teacher's; None without a teacher.
    """

    nll_M: Tensor
    entropy_M: Tensor
    correct_M: Tensor
    divergence_M: Tensor | None = None
    agree_M: Tensor | None = None
