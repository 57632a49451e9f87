"""Rotary tables against the definition and against transformers' scaling functions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from difflm.models.config import RopeConfig
from difflm.models.rope import rotary_frequencies, rotary_scale, rotary_table, rotate


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


YARN = {"factor": 4.0, "original_max_position_embeddings": 4096, "rope_theta": 1e6}


@pytest.mark.parametrize("factor", [1.0, 2.5, 40.0])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention_factor": 1.3},
        {"beta_fast": 16.0, "beta_slow": 2.0},
        {"mscale": 0.707, "mscale_all_dim": 0.9},
        {"mscale": 0.707},
        {"mscale_all_dim": 0.707},
        {"truncate": False},
        {"beta_fast": 1.0, "beta_slow": 1.0},
        {"original_max_position_embeddings": 4},
        {"rope_theta": 5.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("head_dim", [64, 10])
def test_yarn_equals_transformers(options: dict[str, Any], factor: float, head_dim: int) -> None:
    """Frequencies and attention factor; with beta_fast == beta_slow the ramp is a step, not 0 / 0."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    given = YARN | {"factor": factor} | options
    config = LlamaConfig(
        hidden_size=head_dim, num_attention_heads=1, head_dim=head_dim, rope_parameters={"rope_type": "yarn", **given}
    )
    theirs = LlamaRotaryEmbedding(config)
    names = {"rope_theta": "theta", "original_max_position_embeddings": "original_max_positions"}
    fields: dict[str, Any] = {names.get(name, name): value for name, value in given.items()}
    rope = RopeConfig(kind="yarn", **fields)
    assert isinstance(theirs.inv_freq, torch.Tensor)
    assert torch.equal(rotary_frequencies(rope, head_dim), theirs.inv_freq)
    assert rotary_scale(rope) == theirs.attention_scaling
    position = torch.arange(0, 9000, 77)[None]
    table = rotary_table(position, rotary_frequencies(rope, head_dim), torch.bfloat16, scale=rotary_scale(rope))
    expected = theirs(torch.zeros(1, dtype=torch.bfloat16), position)
    assert all(torch.equal(ours[:, 0], theirs) for ours, theirs in zip(table, expected, strict=True))


def test_only_yarn_scales_the_table() -> None:
    for kind in ("default", "linear", "llama3"):
        assert rotary_scale(RopeConfig(kind=kind, factor=8.0)) == 1.0
