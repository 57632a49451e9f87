"""The forward process: schedules, masks drawn per row from explicit generators, complementary views.

Noise is a pure function of (seed, epoch, row number): it never depends on the batch, ranks or a resume.

Shape legend: see `difflm.types`; U groups of a row that share one noise time (blocks, or whole documents).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from difflm.errors import ConfigError
from difflm.types import ModelInput

_WORD = (1 << 64) - 1


def _mix(value: int) -> int:
    """Return a well-spread 64-bit hash of an integer (the finaliser of splitmix64)."""
    value = (value + 0x9E3779B97F4A7C15) & _WORD
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _WORD
    return value ^ (value >> 31)


def content_key(numbers: Iterable[int]) -> int:
    """Return a number for a list of numbers, the same in every process: what is drawn for a content, wherever it is."""
    word = 0
    for number in numbers:
        word = _mix(word + number)
    return word >> 1


@dataclass(frozen=True, slots=True)
class RowNoise:
    """Where the noise of a row comes from.

    Attributes:
        seed: of the run (or of a validation).
    """

    seed: int

    def generator(self, row: int, epoch: int, purpose: int = 0) -> torch.Generator:
        """Return a fresh CPU generator for a row in one pass over the data.

        Args:
            row: number of the row in the data.
            epoch: pass over the data; each pass draws new noise.
            purpose: separates independent uses of one row (0 and down: draws of masks, 1 and up: embedding noise of a
                view).
        """
        word = _mix(self.seed)
        for part in (epoch, row, purpose):
            word = _mix(word + part)
        return torch.Generator().manual_seed(word >> 1)


class NoiseSchedule(Protocol):
    """How the mask probability 1 - alpha_t grows with the noise time t in (0, 1]."""

    def mask_probability(self, t: Tensor) -> Tensor:
        """Return 1 - alpha_t."""
        ...

    def loss_weight(self, t: Tensor) -> Tensor:
        """Return w(t) = -alpha'_t / (1 - alpha_t) >= 0 (the printed Eqs. 1, 2, 5, 7 lack the minus)."""
        ...

    def time(self, mask_probability: float) -> float:
        """Return the t of a mask probability (the inverse of `mask_probability`)."""
        ...


@dataclass(frozen=True, slots=True)
class LinearSchedule:
    """alpha_t = 1 - t: mask probability t, w(t) = 1 / t. The schedule of LLaDA2.0."""

    def mask_probability(self, t: Tensor) -> Tensor:
        """Return t."""
        return t

    def loss_weight(self, t: Tensor) -> Tensor:
        """Return 1 / t."""
        return 1.0 / t

    def time(self, mask_probability: float) -> float:
        """Return the mask probability itself."""
        return mask_probability


@dataclass(frozen=True, slots=True)
class CosineSchedule:
    """alpha_t = 1 - cos(pi (1 - t) / 2): slow at the end, w(t) = (pi / 2) tan(pi (1 - t) / 2)."""

    def mask_probability(self, t: Tensor) -> Tensor:
        """Return cos(pi (1 - t) / 2)."""
        return torch.cos(math.pi / 2 * (1.0 - t))

    def loss_weight(self, t: Tensor) -> Tensor:
        """Return (pi / 2) tan(pi (1 - t) / 2); 0 at t = 1."""
        return (math.pi / 2 * torch.tan(math.pi / 2 * (1.0 - t))).clamp(min=0.0)

    def time(self, mask_probability: float) -> float:
        """Return 1 - (2 / pi) acos(mask probability)."""
        return 1.0 - 2.0 / math.pi * math.acos(mask_probability)


@dataclass(frozen=True, slots=True)
class RowDraw:
    """The noise of one row.

    Attributes:
        masked_L: bool, trainable positions replaced by MASK.
        weight_L: float32 ELBO weight of each trainable position if masked.
        complement_weight_L: the same for the complementary view (trainable and not masked).
    """

    masked_L: Tensor
    weight_L: Tensor
    complement_weight_L: Tensor


class Noise(Protocol):
    """Draws the masks of one row; a frozen dataclass that is its own configuration."""

    def draw(self, group_L: Tensor, trainable_L: Tensor, generator: torch.Generator) -> RowDraw:
        """Return the masks and ELBO weights of a row whose positions share noise times by `group_L` (0..U-1)."""
        ...


def stratified(count: int, generator: torch.Generator) -> Tensor:
    """Return `count` draws, each uniform on (0, 1], one in each of `count` equal strata, in random order; float64.

    Each draw alone is exactly uniform; together they cover the interval, which lowers the variance of a row's loss.
    """
    order = torch.randperm(count, generator=generator)
    jitter = torch.rand(count, generator=generator, dtype=torch.float64)
    return (order + 1.0 - jitter) / count


def _group_times(size_U: Tensor, generator: torch.Generator, *, spread: bool) -> Tensor:
    """Return a draw on (0, 1] per group with trainable positions, stratified over them or independent; 1 elsewhere."""
    uniform_U = torch.ones(size_U.shape[0], dtype=torch.float64)
    used_U = size_U > 0
    count = int(used_U.sum())
    independent = 1.0 - torch.rand(0 if spread else count, generator=generator, dtype=torch.float64)
    uniform_U[used_U] = stratified(count, generator) if spread else independent
    return uniform_U


def _rank_in_group(group_L: Tensor, trainable_L: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return (rank of each trainable position in a random order of its group, trainable positions per group)."""
    length = group_L.shape[0]
    shuffled = torch.randperm(length, generator=generator)
    # Stable sort by group of a random order: inside each group the trainable positions come first, in random order.
    key = 2 * group_L[shuffled] + (~trainable_L[shuffled]).long()
    order = shuffled[key.argsort(stable=True)]
    size_U = torch.bincount(group_L, minlength=int(group_L.max()) + 1)
    start_U = size_U.cumsum(0) - size_U
    rank_L = torch.empty_like(group_L)
    rank_L[order] = torch.arange(length) - start_U[group_L[order]]
    trainable_U = torch.bincount(group_L, weights=trainable_L.double(), minlength=size_U.shape[0]).long()
    return rank_L, trainable_U


@dataclass(frozen=True, slots=True)
class ExactCount:
    """Mask exactly k of a group's n trainable positions, k uniform on 1..n (stratified over the row), weight n / k.

    Integrating Bernoulli masks over t ~ U(0, 1) with weight 1/t gives this estimator exactly (the Beta integral of
    t^(k-1) (1-t)^(n-k) is 1 / (k C(n, k))): the same NELBO, less variance, and no group is left without a mask.
    With one position per group it is mask rate 1 and weight 1, the exact chain of block size 1.
    The complementary view masks the other n - k positions with weight n / (n - k).

    Attributes:
        stratified: spread the draws of a row's groups evenly (less variance) instead of drawing each by itself.

    Source: Eq. 1 of LLaDA2.0 (arXiv:2512.15745) with the corrected sign; the count form is our deviation.
    """

    stratified: bool = True

    def draw(self, group_L: Tensor, trainable_L: Tensor, generator: torch.Generator) -> RowDraw:
        """Return the masks and weights of a row (see `Noise`)."""
        rank_L, size_U = _rank_in_group(group_L, trainable_L, generator)
        uniform_U = _group_times(size_U, generator, spread=self.stratified)
        count_U = torch.minimum((uniform_U * size_U).ceil().long().clamp(min=1), size_U.clamp(min=1))
        masked_L = trainable_L & (rank_L < count_U[group_L])
        size, count = size_U.double(), count_U.double()
        rest = torch.where(count < size, size / (size - count).clamp(min=1.0), 0.0)
        return RowDraw(masked_L, (size / count)[group_L].float(), rest[group_L].float())


@dataclass(frozen=True, slots=True)
class Bernoulli:
    """Mask each trainable position with probability 1 - alpha_t, one t per group (stratified over the row).

    Attributes:
        schedule: mask probability and weight as functions of t.
        bandwidth: (low, high] band of *mask rates*, 0 <= low < high <= 1. t is uniform between the times of its
            ends; the weight carries the factor that keeps E[w * masked] = 1 per trainable token. A band narrower than
            (0, 1] estimates the ELBO on that band only.
        min_masks: masks forced in every group with so many trainable positions (random ones). Only sound with the
            uniform weighting: under 1/t it biases the loss (2.2x at block size 4), which the objective refuses.
        stratified: spread the times of a row's groups evenly (less variance) instead of drawing each by itself.

    Source: LLaDA2.0 sections 4.1 and 5.1 (which writes alpha_t for the mask rate; here a rate is a rate).
    """

    schedule: NoiseSchedule = LinearSchedule()
    bandwidth: tuple[float, float] = (0.0, 1.0)
    min_masks: int = 0
    stratified: bool = True

    def __post_init__(self) -> None:
        """Refuse a band that is not inside [0, 1]."""
        low, high = self.bandwidth
        if not 0.0 <= low < high <= 1.0:
            raise ConfigError(f"bandwidth: {self.bandwidth} is not 0 <= low < high <= 1; give a band of mask rates")

    def draw(self, group_L: Tensor, trainable_L: Tensor, generator: torch.Generator) -> RowDraw:
        """Return the masks and weights of a row (see `Noise`)."""
        rank_L, size_U = _rank_in_group(group_L, trainable_L, generator)
        low, high = (self.schedule.time(rate) for rate in self.bandwidth)
        t_U = low + (high - low) * _group_times(size_U, generator, spread=self.stratified)
        scale = (high - low) / (self.bandwidth[1] - self.bandwidth[0])
        probability_U = self.schedule.mask_probability(t_U)
        chance_L = torch.rand(group_L.shape[0], generator=generator, dtype=torch.float64)
        masked_L = trainable_L & ((chance_L < probability_U[group_L]) | (rank_L < self.min_masks))
        weight_U = self.schedule.loss_weight(t_U) * scale
        # The complementary view has mask rate 1 - p; its weight makes E[w * masked] = 1 for it as well.
        rest_U = torch.where(
            probability_U < 1.0, weight_U * probability_U / (1.0 - probability_U).clamp(min=1e-12), 0.0
        )
        return RowDraw(masked_L, weight_U[group_L].float(), rest_U[group_L].float())


@dataclass(frozen=True, slots=True)
class FullMask:
    """Mask every trainable position, weight 1: block size 1 under any noise, and the state decoding starts from."""

    def draw(self, group_L: Tensor, trainable_L: Tensor, generator: torch.Generator) -> RowDraw:
        """Return the masks and weights of a row (see `Noise`)."""
        one = torch.ones(group_L.shape[0])
        return RowDraw(trainable_L.clone(), one, torch.zeros_like(one))


TimePer = Literal["block", "sequence"]


def embedding_noise(inputs: ModelInput, noise: RowNoise, *, hidden_size: int, deviation: float) -> Tensor:
    """Return Gaussian noise for the embedding layer's output at masked positions, float32 [B, N, D], 0 elsewhere.

    Args:
        inputs: a prepared batch; each row and view draws from its own generator.
        noise: seed.
        hidden_size: D.
        deviation: standard deviation (absolute; the trainer scales by the RMS of the embedding table).

    Source: LLaDA2.0 report, section 7.1 (sigma and duration are not given there).
    """
    out_BND = torch.zeros(*inputs.masked_BN.shape, hidden_size)
    keys = zip(inputs.row_B.tolist(), inputs.epoch_B.tolist(), inputs.view_B.tolist(), strict=True)
    for index, (row, epoch, only) in enumerate(keys):
        masked_N = inputs.masked_BN[index]
        view_N = torch.full_like(masked_N, only, dtype=torch.int64)
        if inputs.layout.view_BW is not None:
            view_N[: inputs.layout.noisy_length] = inputs.layout.view_BW[index]
        for view in view_N[masked_N].unique().tolist():
            own_N = masked_N & (view_N == view)
            generator = noise.generator(row, epoch, purpose=1 + view)
            out_BND[index, own_N] = torch.randn(int(own_N.sum()), hidden_size, generator=generator) * deviation
    return out_BND
