"""An adapter on a whole decoder: fresh it is the parent, off it is the parent, merged it is the same model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from difflm.models.adapters import (
    AdapterSite,
    adaptable_weights,
    adapter_parameters,
    attach_adapter,
    merged_tensors,
    pair_of,
)
from difflm.models.config import ModelConfig
from difflm.models.transformer import Transformer
from tests.checkpoints.tiny import causal, tokens
from tests.decode import tiny
from tests.models.test_moe import LING
from tests.models.test_moe import architecture as sparse_architecture

DENSE = tiny.architecture()
SPARSE = replace(sparse_architecture(replace(LING, dense_layers=(0,))), vocab_size=DENSE.vocab_size)
SHAPES = {"dense": DENSE, "tied": replace(DENSE, tied_embeddings=True), "sparse": SPARSE}


@pytest.fixture(params=sorted(SHAPES))
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return SHAPES[request.param]


def built(config: ModelConfig) -> Transformer:
    torch.manual_seed(0)
    return Transformer(config).double().eval()


def adapted(config: ModelConfig, *, moved: bool = True, fused: bool = False) -> Transformer:
    """Return a model with a pair at every place (query, key and value in one if `fused`), moved off its start."""
    model = built(config)
    generator = torch.Generator().manual_seed(7)
    sites = [AdapterSite(weights=(name,), rank=3, alpha=5.0) for name in adaptable_weights(model)]
    if fused:
        kinds = ("query", "key", "value")
        sites = [each for each in sites if each.weights[0].rpartition(".")[2] not in kinds]
        for layer in range(config.num_layers):
            names = tuple(f"layers.{layer}.attention.{kind}" for kind in kinds)
            sites.append(AdapterSite(weights=names, rank=3, alpha=5.0))
    attach_adapter(model, sites, token_ids=(4, 6), generator=generator)
    if moved:
        with torch.no_grad():
            for parameter in adapter_parameters(model).values():
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def logits(model: Transformer, token_BL: Tensor, adapter: bool = True) -> Tensor:
    position_BL = torch.arange(token_BL.shape[1]).expand_as(token_BL)
    with torch.no_grad():
        hidden = model(token_BL, position_BL, causal, adapter=adapter)
        return hidden @ model.head_weight(adapter).T


def test_a_fresh_adapter_changes_nothing_bit_for_bit(config: ModelConfig) -> None:
    token_BL = tokens(config.vocab_size, length=12)
    assert torch.equal(logits(adapted(config, moved=False), token_BL), logits(built(config), token_BL))


@pytest.mark.parametrize("fused", [False, True])
def test_off_is_the_parent_bit_for_bit_and_merged_is_the_adapted_model(config: ModelConfig, fused: bool) -> None:
    model, parent, token_BL = adapted(config, fused=fused), built(config), tokens(config.vocab_size, length=12)
    before = logits(parent, token_BL)
    assert torch.equal(logits(model, token_BL, False), before)
    with_adapter = logits(model, token_BL)
    assert not torch.allclose(with_adapter, before, atol=1e-2)
    parent.load_state_dict(merged_tensors(model), strict=False)
    assert torch.allclose(logits(parent, token_BL), with_adapter, atol=1e-12)


def test_rows_before_the_first_adapted_one_are_the_parent_s(config: ModelConfig) -> None:
    """What decoding with a draft adapter rests on: clean rows of a causal model know nothing of it."""
    token_BL = tokens(config.vocab_size, length=12)
    rows_BL = torch.arange(12).expand_as(token_BL) >= 8
    position_BL = torch.arange(12).expand_as(token_BL)
    with torch.no_grad():
        gated = adapted(config)(token_BL, position_BL, causal, adapter=rows_BL)
        plain = built(config)(token_BL, position_BL, causal)
    # Rows of other experts are summed in other numbers, which some processors round otherwise.
    assert torch.allclose(gated[:, :8], plain[:, :8], rtol=0.0, atol=1e-12)
    assert not torch.allclose(gated[:, 8:], plain[:, 8:], atol=1e-3)


def test_gradients_are_those_of_the_merged_weights(config: ModelConfig) -> None:
    """By the chain rule on dL/dW of the merged model, W = base + scale B A."""
    model, token_BL = adapted(config, fused=True), tokens(config.vocab_size, length=12)
    position_BL = torch.arange(12).expand_as(token_BL)
    merged = built(config)
    merged.load_state_dict(merged_tensors(model), strict=False)
    for each in (model, merged):
        (each(token_BL, position_BL, causal) @ each.head_weight().T).square().sum().backward()
    grads = {name: each.grad for name, each in merged.named_parameters()}
    names = [f"layers.1.attention.{kind}" for kind in ("query", "key", "value")]
    shared = pair_of(model, names[0])
    assert shared.a.grad is not None
    expected_a = torch.zeros_like(shared.a)
    for name in names:
        pair, dense = pair_of(model, name), grads[f"{name}.weight"]
        assert pair.b.grad is not None
        assert dense is not None
        assert pair.a is shared.a
        assert torch.allclose(pair.b.grad, pair.scale * dense @ pair.a.T, rtol=1e-9, atol=1e-9)
        expected_a += pair.scale * pair.b.detach().T @ dense
    assert torch.allclose(shared.a.grad, expected_a, rtol=1e-9, atol=1e-9)
    rows, dense = model.token_rows, grads["embedding.weight"]
    assert rows is not None
    assert dense is not None
    assert rows.weight.grad is not None
    assert torch.allclose(rows.weight.grad, dense[[4, 6]], rtol=1e-9, atol=1e-9)


def test_checkpointed_layers_see_the_same_rows(config: ModelConfig) -> None:
    token_BL = tokens(config.vocab_size, length=12)
    position_BL, rows_BL = torch.arange(12).expand_as(token_BL), torch.arange(12).expand_as(token_BL) >= 8
    found = []
    for checkpointing in (False, True):
        model = adapted(config)
        out = model(token_BL, position_BL, causal, adapter=rows_BL, activation_checkpointing=checkpointing)
        out.square().sum().backward()
        found.append([each.grad for each in adapter_parameters(model).values()])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True) if one is not None and two is not None)


def test_parameters_of_an_adapter_are_no_part_of_the_base(config: ModelConfig) -> None:
    model = adapted(config, fused=True)
    mine = adapter_parameters(model)
    assert set(model.stored_tensors()) == set(built(config).stored_tensors())
    assert set(mine) | set(model.stored_tensors()) == {
        name for name, _ in (*model.named_parameters(), *model.named_buffers())
    }
    assert "layers.0.attention.key.lora.a" not in mine, "shared with the query's"
    assert not {name for name in mine if name.startswith("head")}


def test_a_start_depends_on_the_generator_alone_and_is_kaiming_s() -> None:
    one, two = (
        adapter_parameters(adapted(replace(DENSE, hidden_size=16 * DENSE.hidden_size, head_dim=64), moved=False))
        for _ in range(2)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    a = one["layers.0.mlp.gate.lora.a"]
    bound = a.shape[1] ** -0.5
    assert 0.9 * bound < float(a.detach().abs().max()) <= bound
    assert not bool(one["layers.0.mlp.gate.lora.b"].any())
    assert not torch.equal(a, one["layers.1.mlp.gate.lora.a"])


def test_the_scale() -> None:
    assert AdapterSite(weights=("x",), rank=4, alpha=8.0).scale == 2.0
    assert AdapterSite(weights=("x",), rank=4, alpha=8.0, stabilised=True).scale == 4.0
