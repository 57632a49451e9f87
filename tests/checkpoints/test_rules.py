"""The tables of tensor names are invertible, and every change undoes itself bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.checkpoints.families import FAMILIES, Family
from difflm.checkpoints.rules import (
    GGUF_LLAMA,
    HF_DENSE,
    HF_LING,
    HF_LING_STACKED,
    HF_QWEN3_MOE,
    InterleaveRotary,
    KeyRule,
    Rename,
    StackExperts,
    key_map,
    stored_dtype,
)
from difflm.checkpoints.source import parameter_shapes
from difflm.models.config import ModelConfig, MoEConfig, RopeConfig


def config(*, heads: int = 4, kv: int = 2, head_dim: int = 6, **options: Any) -> ModelConfig:
    return ModelConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=10,
        num_layers=3,
        num_heads=heads,
        num_kv_heads=kv,
        head_dim=head_dim,
        norm_eps=1e-6,
        rope=RopeConfig(),
        max_positions=32,
        **options,
    )


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_tables_are_one_to_one(family: Family) -> None:
    for rules in (family.hf_rules, family.gguf_rules or ()):
        for side in ([rule.disk for rule in rules], [rule.model for rule in rules]):
            flat = [name for names in side for name in names]
            assert len(flat) == len(set(flat))


def test_only_parameters_of_the_model_are_mapped() -> None:
    plain = parameter_shapes(config(tied_embeddings=True))
    full = parameter_shapes(config(qkv_bias=True, output_bias=True, mlp_bias=True, qk_norm=True))
    for shapes in (plain, full):
        rules = key_map(HF_DENSE, shapes, config())
        assert {name for rule in rules for name in rule.model} == set(shapes)
    disk = {name for rule in key_map(HF_DENSE, plain, config()) for name in rule.disk}
    assert "lm_head.weight" not in disk
    assert "model.layers.2.self_attn.q_proj.weight" in disk
    assert not any("bias" in name or "q_norm" in name for name in disk)
    assert len(full) - len(plain) == 3 * 9 + 1  # 7 biases and 2 norms a layer, and the head


def test_a_parameter_without_rule_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="no rule for"):
        key_map(HF_DENSE, {"embedding.weight": (1,), "novel.weight": (1,)}, config())


@settings(max_examples=20, deadline=None)
@given(
    heads=st.integers(1, 4), repeats=st.integers(1, 3), half=st.integers(1, 4), bias=st.booleans(), query=st.booleans()
)
def test_interleaving_is_its_own_undoing(heads: int, repeats: int, half: int, bias: bool, query: bool) -> None:
    architecture = config(heads=heads * repeats, kv=heads, head_dim=2 * half)
    rows = (heads * repeats if query else heads) * 2 * half
    tensor = torch.arange(rows * (1 if bias else 5)).reshape((rows,) if bias else (rows, 5))
    change = InterleaveRotary("query" if query else "key")
    disk = change.to_disk([tensor], architecture)
    assert torch.equal(change.to_model(disk, architecture)[0], tensor)
    assert torch.equal(change.to_disk(change.to_model([tensor], architecture), architecture)[0], tensor)


def test_interleaving_against_a_loop() -> None:
    """Model row i of a head is rotated with row i + E/2; GGUF stores the two as neighbours (llama.cpp `permute`)."""
    architecture = config(heads=2, kv=1, head_dim=6)
    model = torch.arange(12)
    disk = InterleaveRotary("query").to_disk([model], architecture)[0].tolist()
    expected = [head * 6 + pair + 3 * which for head in range(2) for pair in range(3) for which in range(2)]
    assert disk == expected
    assert disk != model.tolist()


def test_only_llama_is_interleaved_in_gguf() -> None:
    changed = {rule.model[0] for rule in GGUF_LLAMA if rule.change != Rename()}
    assert changed == {
        f"layers.{{l}}.attention.{part}.{kind}" for part in ("query", "key") for kind in ("weight", "bias")
    }
    assert all(rule.change == Rename() for name in ("qwen2", "qwen3") for rule in FAMILIES[name].gguf_rules or ())


def sparse(**options: bool) -> ModelConfig:
    moe = MoEConfig(
        num_experts=3,
        experts_per_token=2,
        expert_size=5,
        score="sigmoid",
        expert_bias=True,
        shared_experts=1,
        shared_size=5,
        dense_layers=(0,),
    )
    return replace(config(qk_norm=True, **options), moe=moe)


def random_tensors(architecture: ModelConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in parameter_shapes(architecture).items()}


@pytest.mark.parametrize("rules", [HF_LING, HF_LING_STACKED, HF_QWEN3_MOE], ids=["ling", "stacked", "qwen3_moe"])
@pytest.mark.parametrize("biases", [False, True])
def test_experts_and_fused_projections_come_back_bit_for_bit(rules: tuple[KeyRule, ...], biases: bool) -> None:
    """Model -> disk -> model, the shapes on disk as announced, and every name once."""
    architecture = sparse(qkv_bias=biases, output_bias=biases)
    if rules is HF_QWEN3_MOE:
        moe = replace(architecture.moe, shared_experts=0, expert_bias=False)  # pyright: ignore[reportArgumentType]
        architecture = replace(architecture, moe=moe)
    model = random_tensors(architecture)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.items()}
    disk: dict[str, torch.Tensor] = {}
    for rule in key_map(rules, shapes, architecture):
        tensors = rule.change.to_disk([model[name] for name in rule.model], architecture)
        announced = rule.change.disk_shapes([shapes[name] for name in rule.model], architecture)
        assert [tuple(tensor.shape) for tensor in tensors] == announced
        assert not set(rule.disk) & set(disk)
        disk |= dict(zip(rule.disk, tensors, strict=True))
        back = rule.change.to_model([disk[name] for name in rule.disk], architecture)
        assert all(torch.equal(one, model[name]) for one, name in zip(back, rule.model, strict=True))
    if rules is HF_LING_STACKED:
        assert disk["model.layers.2.mlp.experts.up_proj"].shape == (3, 5, 8)
    else:
        assert disk["model.layers.2.mlp.experts.1.up_proj.weight"].shape == (5, 8)
    assert ("model.layers.0.mlp.gate.weight" in disk, "model.layers.1.mlp.gate.weight" in disk) == (False, True)


def test_where_the_parts_of_experts_and_projections_lie() -> None:
    architecture = sparse()
    model = random_tensors(architecture)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.items()}
    disk = {}
    for rule in key_map(HF_LING, shapes, architecture):
        tensors = rule.change.to_disk([model[name] for name in rule.model], architecture)
        disk |= dict(zip(rule.disk, tensors, strict=True))
    experts = model["layers.1.mlp.experts.gate_up"]
    assert torch.equal(disk["model.layers.1.mlp.experts.2.gate_proj.weight"], experts[2, :5])
    assert torch.equal(disk["model.layers.1.mlp.experts.2.up_proj.weight"], experts[2, 5:])
    down = model["layers.1.mlp.experts.down"]
    assert torch.equal(disk["model.layers.1.mlp.experts.0.down_proj.weight"], down[0])
    for rule in key_map(HF_LING_STACKED, shapes, architecture):
        tensors = rule.change.to_disk([model[name] for name in rule.model], architecture)
        disk |= dict(zip(rule.disk, tensors, strict=True))
    for part in ("gate", "up", "down"):
        split = [disk[f"model.layers.1.mlp.experts.{each}.{part}_proj.weight"] for each in range(3)]
        assert torch.equal(disk[f"model.layers.1.mlp.experts.{part}_proj"], torch.stack(split)), part
    fused = disk["model.layers.0.attention.query_key_value.weight"]
    assert torch.equal(fused[:24], model["layers.0.attention.query.weight"])
    assert torch.equal(fused[24:36], model["layers.0.attention.key.weight"])
    assert torch.equal(fused[36:], model["layers.0.attention.value.weight"])


def test_a_stack_is_as_wide_as_its_widest_expert() -> None:
    wide, narrow = torch.full((2, 3), 1 + 2**-20), torch.ones(2, 3, dtype=torch.bfloat16)
    stack = StackExperts().to_model([narrow, wide], sparse())[0]
    assert torch.equal(stack, torch.stack([narrow.float(), wide]))


def test_biases_of_experts_are_never_narrowed() -> None:
    for name in ("layers.1.mlp.router.expert_bias", "model.layers.1.mlp.gate.expert_bias"):
        assert stored_dtype(name, torch.bfloat16) == torch.float32
        assert stored_dtype(name, torch.float64) == torch.float64
    assert stored_dtype("layers.1.mlp.router.weight", torch.bfloat16) == torch.bfloat16
