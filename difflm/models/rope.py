"""Rotary tables: default, linear, Llama-3 and YaRN scaling, on all or the first part of a head.

Shape legend: see `difflm.types`; R = rotated dimensions of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from difflm.models.config import RopeConfig


def rotary_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """Return the angular frequency of each rotated pair, float32 [R / 2], radians per position.

    Source: RoFormer; "llama3" is the band-wise scaling of Llama 3.1 (long wavelengths divided by `factor`,
    short ones kept, a linear ramp between); "yarn" is NTK-by-parts of Peng et al., arXiv:2309.00071, section 3.2.
    """
    rotary_dim = int(head_dim * config.partial)
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    frequency = 1.0 / (config.theta**exponent)
    if config.kind == "default":
        return frequency
    if config.kind == "linear":
        return frequency / config.factor
    if config.kind == "yarn":
        keep = 1.0 - _yarn_ramp(config, rotary_dim)
        # The order of transformers, so that the frequencies are the same floats.
        position_frequency = config.theta**exponent
        return 1.0 / (config.factor * position_frequency) * (1.0 - keep) + 1.0 / position_frequency * keep
    wavelength = 2 * math.pi / frequency
    turns = config.original_max_positions / wavelength
    ramp = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    keep = ramp.clamp(0.0, 1.0)
    return keep * frequency + (1.0 - keep) * frequency / config.factor


def _yarn_ramp(config: RopeConfig, rotary_dim: int) -> Tensor:
    """Return how much of each pair is divided by the factor: 0 for fast pairs, 1 for slow ones, float32 [R / 2]."""

    def pair_of(turns: float) -> float:
        """Return the pair that makes this many turns within the original context."""
        return (
            rotary_dim * math.log(config.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(config.theta))
        )

    low, high = pair_of(config.beta_fast), pair_of(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    if low == high:
        high += 0.001
    return ((torch.arange(rotary_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0.0, 1.0)


def rotary_scale(config: RopeConfig) -> float:
    """Return the factor on cosine and sine: YaRN's attention factor, 1 for every other kind.

    Source: arXiv:2309.00071, section 3.4 (the square root of 1/t: 0.1 ln(factor) + 1), with the `mscale` pair of
    DeepSeek-V2.
    """
    if config.kind != "yarn":
        return 1.0
    if config.attention_factor is not None:
        return config.attention_factor

    def strength(mscale: float) -> float:
        return 1.0 if config.factor <= 1 else 0.1 * mscale * math.log(config.factor) + 1.0

    if config.mscale and config.mscale_all_dim:
        return strength(config.mscale) / strength(config.mscale_all_dim)
    return strength(1.0)


def rotary_table(
    position_BN: Tensor, frequency_F: Tensor, dtype: torch.dtype, *, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return (cosine, sine) times `scale`, each [B, 1, N, R], computed in float32 and then cast to `dtype`."""
    angle_BNF = position_BN[..., None].float() * frequency_F
    angle_BNR = torch.cat([angle_BNF, angle_BNF], dim=-1)[:, None]
    cosine, sine = angle_BNR.cos(), angle_BNR.sin()
    if scale != 1.0:
        cosine, sine = cosine * scale, sine * scale
    return cosine.to(dtype), sine.to(dtype)


def rotate(value_BHND: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the first R dimensions of every head (half-split pairs: i with i + R/2); the rest passes through."""
    cosine, sine = table
    rotary_dim = cosine.shape[-1]
    turned = value_BHND[..., :rotary_dim]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cosine + torch.cat([-second, first], dim=-1) * sine
    if rotary_dim == value_BHND.shape[-1]:
        return turned
    return torch.cat([turned, value_BHND[..., rotary_dim:]], dim=-1)
