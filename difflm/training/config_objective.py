"""Sections `objective`, `curriculum` and `embedding_noise` of a training configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from difflm.diffusion.confidence import ConfidenceNormaliser
from difflm.diffusion.windows import DraftLoss, WindowNoise
from difflm.errors import ConfigError
from difflm.training.config_fields import (
    STRICT,
    AboveZero,
    Count,
    NonEmptyPath,
    NonNegative,
    Positive,
    Share,
    UpToOne,
)
from difflm.types import BlockOrigin


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceConfig:
    """Confidence-aware training (Eq. 6): the entropy of masked tokens that are predicted right is part of the loss.

    Attributes:
        weight: lambda, coefficient of the entropy. Default 2.
        temperature: T of the entropy, of softmax(logits / T). Default 1.
        normaliser: the entropy is divided by the "correct" tokens of a step (with `accumulation` above 1 they are
            counted in one more forward without gradient), or by all "masked" ones. Default "correct".
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    weight: AboveZero = 2.0
    temperature: AboveZero = 1.0
    normaliser: ConfidenceNormaliser = "correct"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDiffusionConfig:
    """The masked-diffusion loss: Eq. 1 (blocks), Eq. 2 (one block covers the row), Eq. 5 (prompt + completion).

    Attributes:
        kind: "block_diffusion".
        noise: "exact_count" masks k of a block's n trainable positions, k uniform; "bernoulli" masks each with
            probability t. Default "exact_count".
        weighting: "elbo" (n/k or 1/t, divided by trainable tokens), "uniform" (1, divided by masked tokens) or
            "cart" (by the visible tokens near a masked one, divided by masked tokens). Default "elbo".
        cart_p: parameter of the geometric fall-off of "cart", in (0, 1]; larger looks less far. Default 0.1.
        stratified: spread the noise times of a row evenly over their range (less variance) instead of drawing them
            independently. Default true.
        time_per: positions that share one draw of k or t: a "block" (stratified over a row's blocks) or a
            "sequence" (document). Default "block".
        schedule: mask probability over t, bernoulli only: "linear" (t) or "cosine". Default "linear".
        bandwidth: [low, high], band of mask rates that are drawn, bernoulli only, 0 <= low < high <= 1. Null takes
            [0, 1], and with weighting "uniform" [0.3, 0.8], or with `complementary` [0.2, 0.8], so that the rates of
            the inverse masks lie in the band as well. Default null.
        complementary: train each row twice, the second time with the other trainable positions masked. Both stand
            before one clean stream: 3L rows instead of 4L. Default false.
        views: draws of the noise of each row in one step, all before one clean stream; the loss is their mean.
            Default 1.
        ar_weight: coefficient of the next-token loss on the clean stream (needs a checkpoint with
            clean_attention "causal"). Default 0.
        annealing_tokens: over this many first tokens of the run the view of a row inside its block widens from causal
            to the whole block; 0 starts with the whole block. Default 0.
        min_masks: least masked positions of a block, bernoulli with uniform weighting only (it would bias
            the ELBO). Default 0.
        suppress_mask: score with MASK at probability 0, as decoding does, instead of raw logits. Default false.
        block_origin: blocks start anew in each "document" or are counted along the "row" (Eq. 3 as printed).
            Default "document".
        confidence: also sharpen what is predicted right (CAP); null does not. Default null.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    kind: Literal["block_diffusion"] = "block_diffusion"
    noise: Literal["exact_count", "bernoulli"] = "exact_count"
    weighting: Literal["elbo", "uniform", "cart"] = "elbo"
    cart_p: UpToOne = 0.1
    stratified: bool = True
    time_per: Literal["block", "sequence"] = "block"
    schedule: Literal["linear", "cosine"] = "linear"
    bandwidth: tuple[Share, Share] | None = None
    complementary: bool = False
    views: Positive = 1
    ar_weight: NonNegative = 0.0
    annealing_tokens: Count = 0
    min_masks: Count = 0
    suppress_mask: bool = False
    block_origin: BlockOrigin = "document"
    confidence: ConfidenceConfig | None = None

    def __post_init__(self) -> None:
        """Refuse combinations that are undefined or biased."""
        low, high = self.band
        if low >= high:
            raise ConfigError(f"train.objective.bandwidth: [{low}, {high}] is empty; low must be below high")
        if self.noise == "exact_count" and ((low, high) != (0.0, 1.0) or self.schedule != "linear"):
            field_name = "bandwidth" if (low, high) != (0.0, 1.0) else "schedule"
            value = [low, high] if field_name == "bandwidth" else self.schedule
            raise ConfigError(
                f"train.objective.{field_name}: {value} has no meaning for noise 'exact_count', which draws counts; "
                "set noise: bernoulli"
            )
        if self.cart_p != 0.1 and self.weighting != "cart":
            raise ConfigError(
                f"train.objective.cart_p: {self.cart_p} has no meaning for weighting {self.weighting!r}; "
                "set weighting: cart"
            )
        if self.min_masks and (self.weighting == "elbo" or self.noise == "exact_count"):
            raise ConfigError(
                f"train.objective.min_masks: {self.min_masks} needs noise: bernoulli and weighting: uniform "
                "(forced masks bias the ELBO; exact_count never leaves a block without a mask); set it to 0"
            )

    @property
    def band(self) -> tuple[float, float]:
        """Return the band of mask rates that are drawn.

        Source: the uniform weighting's is that of the authors' trainer; the report names none. With r the inverse mask
            has rate 1 - r, which a symmetric band holds as well.
        """
        if self.bandwidth is not None:
            return self.bandwidth
        if self.noise == "exact_count" or self.weighting != "uniform":
            return 0.0, 1.0
        return (0.2, 0.8) if self.complementary else (0.3, 0.8)


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftingConfig:
    """Windows of masks behind any token of a row, and the next-token loss beside them: one model drafts and verifies.

    The block size of a stage is the window: the tokens that one forward drafts. Needs a checkpoint with clean_attention
    "causal". Documents end with their one EOS (`data.fill` has no say), and no window crosses the end.

    Attributes:
        kind: "drafting".
        noise: "masked" masks whole windows; "draft" trains windows of every length up to that of the stage (a window
            whose first tokens are known is a shorter one behind a later token); "uniform" masks k of a window's n
            tokens, k uniform, weight n/k. Default "masked".
        draft_loss: of the windows: "ce" against the data's token, or "kl" or "tv" (total variation) against the
            next-token distribution that the same forward has at the clean row. Default "ce".
        noisy_rows: rows of windows that are added to each row; null takes `row_length`. Default null.
        ar_weight: coefficient of the next-token loss; 0 with `lora.adapter_rows` "noisy". Default 1.
        diffusion_weight: coefficient of the loss on windows. Default 0.3.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    kind: Literal["drafting"] = "drafting"
    noise: WindowNoise = "masked"
    draft_loss: DraftLoss = "ce"
    noisy_rows: Positive | None = None
    ar_weight: NonNegative = 1.0
    diffusion_weight: AboveZero = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceConfig:
    """Direct preference optimisation on the block ELBO (Eqs. 7-8); the data are preference pairs.

    The masks of a block are exact counts with the ELBO weight. Chosen and rejected answer share noise times, policy and
    reference share all masks.

    Attributes:
        kind: "dpo".
        beta: scale of the difference of log-likelihoods. Default 0.1.
        samples: draws of the noise of each pair in a step, all before one clean stream. Default 1.
        length_normalised: divide the log-likelihood of an answer by its tokens. Default false.
        reference: checkpoint that the policy is compared with; null takes the model that the run starts from: with
            `lora` the base with the adapter off, otherwise a second, frozen copy. Default null.
        block_origin: blocks start anew in each "document" or are counted along the "row". Default "document".
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    kind: Literal["dpo"] = "dpo"
    beta: AboveZero = 0.1
    samples: Positive = 1
    length_normalised: bool = False
    reference: NonEmptyPath | None = None
    block_origin: BlockOrigin = "document"


@dataclass(frozen=True, slots=True, kw_only=True)
class NextTokenConfig:
    """Next-token prediction: the AR control, and a sanity check of a conversion.

    Attributes:
        kind: "next_token".
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    kind: Literal["next_token"] = "next_token"


ObjectiveConfig = Annotated[
    BlockDiffusionConfig | DraftingConfig | PreferenceConfig | NextTokenConfig, Field(discriminator="kind")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """One step of the block-size ladder.

    Attributes:
        tokens: length of the stage, tokens. No default.
        block_size: tokens in a block, or "row" for the whole row (no clean half); of drafting: tokens of a window;
            absent for next_token only.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    tokens: Positive
    block_size: Positive | Literal["row"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingNoiseConfig:
    """Gaussian noise on the embedding layer's output at masked positions, in training only (report, section 7.1).

    Attributes:
        sigma: standard deviation at the start, relative to the RMS of the embedding table; 0 disables. Default 0.
        stages: sigma falls linearly to 0 over the tokens of this many first stages. Default 1.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    sigma: NonNegative = 0.0
    stages: Positive = 1
