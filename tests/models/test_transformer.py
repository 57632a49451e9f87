"""The decoder's own promises: norms, ties, embedding noise, nothing allocated on meta."""

from __future__ import annotations

import torch

from difflm.models.attention import DenseAttention
from difflm.models.transformer import RMSNorm, Transformer
from tests.decode.tiny import architecture, random_transformer


def test_rms_norm_against_its_formula_and_in_bfloat16() -> None:
    hidden = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    norm = RMSNorm(8, 1e-6)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2.0, 8))
    expected = hidden / (hidden.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    assert torch.allclose(norm(hidden), expected, atol=1e-6)
    half = norm.to(torch.bfloat16)(hidden.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), expected, atol=3e-2)


def test_rms_norm_takes_its_statistics_in_float32() -> None:
    hidden = torch.randn(4, 4096, generator=torch.Generator().manual_seed(1)).bfloat16()
    wide = hidden.float()
    expected = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).bfloat16()
    assert torch.equal(RMSNorm(4096, 1e-6).bfloat16()(hidden), expected)


def test_embedding_noise_is_added_to_the_embedding_s_output() -> None:
    model = random_transformer(architecture(), seed=0)
    token, position = torch.tensor([[1, 2, 3]]), torch.arange(3)[None]
    attend = DenseAttention(torch.ones(1, 1, 3, 3, dtype=torch.bool))
    noise = torch.zeros(1, 3, 16, dtype=torch.float64)
    plain = model(token, position, attend)
    assert torch.equal(plain, model(token, position, attend, embedding_noise_BND=noise))
    noise[0, 1] = model.embedding.weight[7] - model.embedding.weight[2]
    swapped = model(torch.tensor([[1, 7, 3]]), position, attend)
    assert torch.allclose(swapped, model(token, position, attend, embedding_noise_BND=noise))
    assert not torch.allclose(swapped, plain)


def test_a_large_model_costs_nothing_on_meta() -> None:
    from dataclasses import replace

    config = replace(architecture(), vocab_size=150_000, hidden_size=8192, num_layers=8, intermediate_size=30_000)
    with torch.device("meta"):
        model = Transformer(config)
    assert sum(parameter.numel() for parameter in model.parameters()) > 8e9
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not model.frequency_F.is_meta


def test_tied_embeddings_are_one_parameter_through_dtype_changes() -> None:
    from dataclasses import replace

    model = Transformer(replace(architecture(), tied_embeddings=True)).to(torch.bfloat16)
    assert model.head.weight is model.embedding.weight
    assert "head.weight" not in dict(model.named_parameters())
    assert model.frequency_F.dtype == torch.float32
