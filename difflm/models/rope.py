"""Rotary tables: default, linear and Llama-3 scaling, on all or the first part of a head.

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
    short ones kept, a linear ramp between).
    """
    rotary_dim = int(head_dim * config.partial)
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    frequency = 1.0 / (config.theta**exponent)
    if config.kind == "default":
        return frequency
    if config.kind == "linear":
        return frequency / config.factor
    wavelength = 2 * math.pi / frequency
    turns = config.original_max_positions / wavelength
    ramp = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    keep = ramp.clamp(0.0, 1.0)
    return keep * frequency + (1.0 - keep) * frequency / config.factor


def rotary_table(position_BN: Tensor, frequency_F: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return (cosine, sine), each [B, 1, N, R], computed in float32 and then cast to `dtype`."""
    angle_BNF = position_BN[..., None].float() * frequency_F
    angle_BNR = torch.cat([angle_BNF, angle_BNF], dim=-1)[:, None]
    return angle_BNR.cos().to(dtype), angle_BNR.sin().to(dtype)


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
