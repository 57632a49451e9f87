"""The tables of tensor names are invertible, and every change undoes itself bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.checkpoints.families import FAMILIES, Family
from difflm.checkpoints.rules import GGUF_LLAMA, HF_DENSE, InterleaveRotary, KeyRule, Rename, key_map
from difflm.checkpoints.source import parameter_shapes
from difflm.models.config import ModelConfig, RopeConfig


def config(*, heads: int = 4, kv: int = 2, head_dim: int = 6, **options: bool) -> ModelConfig:
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


class Stack(Rename):
    """Several disk tensors become one parameter: what a mixture of experts will need."""

    def to_model(self, tensors: object, config: ModelConfig) -> list[torch.Tensor]:
        return [torch.stack(list(tensors))]  # type: ignore[call-overload]


def test_a_rule_may_join_several_tensors() -> None:
    rule = KeyRule(("e.0.{l}", "e.1.{l}"), ("layers.{l}.experts",), Stack())
    filled = key_map([rule], {f"layers.{layer}.experts": (2, 3) for layer in range(3)}, config())
    assert [each.disk for each in filled] == [(f"e.0.{layer}", f"e.1.{layer}") for layer in range(3)]
    assert filled[0].change.to_model([torch.zeros(3), torch.ones(3)], config())[0].shape == (2, 3)
