"""Rotary tables against the definition and against transformers' scaling functions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from difflm.models.config import RopeConfig
from difflm.models.rope import rotary_frequencies, rotary_table, rotate


def test_rotation_is_a_complex_multiplication_of_half_split_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(1, 2, 3, 8, generator=generator)
    position = torch.tensor([[0, 5, 11]])
    frequency = rotary_frequencies(RopeConfig(theta=100.0), 8)
    turned = rotate(value, rotary_table(position, frequency, torch.float32))
    for head in range(2):
        for n, place in enumerate((0, 5, 11)):
            for pair in range(4):
                z = complex(value[0, head, n, pair], value[0, head, n, pair + 4])
                z *= complex(math.cos(place * 100.0 ** (-pair / 4)), math.sin(place * 100.0 ** (-pair / 4)))
                assert float(turned[0, head, n, pair]) == pytest.approx(z.real, abs=1e-5)
                assert float(turned[0, head, n, pair + 4]) == pytest.approx(z.imag, abs=1e-5)


def test_a_partial_rotation_leaves_the_rest_of_the_head() -> None:
    value = torch.randn(1, 1, 2, 8, generator=torch.Generator().manual_seed(0))
    frequency = rotary_frequencies(RopeConfig(partial=0.5), 8)
    assert frequency.shape == (2,)
    turned = rotate(value, rotary_table(torch.tensor([[3, 4]]), frequency, torch.float32))
    assert torch.equal(turned[..., 4:], value[..., 4:])
    assert not torch.equal(turned[..., :4], value[..., :4])


@pytest.mark.parametrize(
    ("rope", "parameters"),
    [
        (RopeConfig(theta=5e5), {"rope_type": "default", "rope_theta": 5e5}),
        (RopeConfig(theta=1e4, kind="linear", factor=3.0), {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}),
        (
            RopeConfig(theta=5e5, kind="llama3", factor=8.0, original_max_positions=256),
            {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 256,
            },
        ),
    ],
)
def test_frequencies_equal_transformers(rope: RopeConfig, parameters: dict[str, Any]) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(hidden_size=64, num_attention_heads=1, head_dim=64, rope_parameters=parameters)
    theirs = LlamaRotaryEmbedding(config).inv_freq
    assert isinstance(theirs, torch.Tensor)
    assert torch.allclose(rotary_frequencies(rope, 64), theirs, rtol=1e-6, atol=0)
