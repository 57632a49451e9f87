"""Fields of a mixture of experts: nothing is assumed, what is not implemented is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from difflm.checkpoints.families import model_config
from difflm.checkpoints.moe_fields import hf_experts
from difflm.errors import CheckpointError
from difflm.models.config import ModelConfig, MoEConfig
from tests.checkpoints.tiny import LING, LLAMA, QWEN3_MOE

QWEN = LLAMA | {"model_type": "qwen3_moe", "num_hidden_layers": 4, **QWEN3_MOE}


def ling(**changes: Any) -> ModelConfig:
    return model_config(LING | changes, "config.json")


def qwen(**changes: Any) -> ModelConfig:
    return model_config(QWEN | changes, "config.json")


def test_ling() -> None:
    assert ling().moe == MoEConfig(
        num_experts=8,
        experts_per_token=3,
        expert_size=20,
        score="sigmoid",
        groups=4,
        groups_kept=2,
        expert_bias=True,
        normalise=True,
        scaling=2.5,
        shared_experts=1,
        shared_size=20,
        dense_layers=(0,),
    )
    assert (ling().rope.partial, ling().rope.theta, ling().qk_norm) == (0.5, 600000.0, True)


def test_what_the_published_code_does_is_what_is_read() -> None:
    # One expert per token: its weight is the score, not 1.
    assert ling(num_experts_per_tok=1).moe.normalise is False  # pyright: ignore[reportOptionalMemberAccess]
    wide = ling(num_shared_experts=2, moe_shared_expert_intermediate_size=24).moe
    assert wide is not None
    assert (wide.shared_experts, wide.shared_size) == (2, 24)
    assert ling(num_shared_experts=0).moe.shared_size == 0  # pyright: ignore[reportOptionalMemberAccess]
    without = {name: value for name, value in LING.items() if name != "use_qk_norm"}
    assert model_config(without, "x").qk_norm, "dFactory's configurations do not say; its code always normalises"
    assert not ling(use_qk_norm=False).qk_norm
    assert (ling(use_qkv_bias=True).qkv_bias, ling(use_bias=True).output_bias) == (True, True)


@pytest.mark.parametrize(
    "name",
    [
        *("num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "partial_rotary_factor", "use_bias"),
        *("use_qkv_bias", "max_position_embeddings", "num_experts", "num_experts_per_tok", "num_shared_experts"),
        *("n_group", "topk_group", "routed_scaling_factor", "moe_intermediate_size", "first_k_dense_replace"),
        *("norm_topk_prob", "score_function", "moe_router_enable_expert_bias"),
    ],
)
def test_an_absent_field_is_never_a_class_default(name: str) -> None:
    raw = {field: value for field, value in LING.items() if field != name}
    with pytest.raises(CheckpointError) as caught:
        model_config(raw, "config.json")
    assert f"{name} is missing; expected" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score_function": "softmax"}, "score_function is 'softmax'; expected sigmoid"),
        (
            {"router_type": "hash"},
            "router_type is 'hash'; expected sigmoid or nothing (this family has no other router)",
        ),
        ({"scoring_func": "softmax"}, "scoring_func is 'softmax'; expected sigmoid or nothing"),
        ({"multi_gate": True}, "multi_gate is True; expected false"),
        ({"router_dtype": "bf16"}, "router_dtype is 'bf16'; expected fp32"),
        ({"n_group": 0}, "n_group is 0; expected 1, with topk_group 1, where experts have no groups"),
        ({"n_group": -1}, "n_group is -1; expected an integer of at least 1"),
        ({"n_group": 3}, "n_group is 3; expected a divisor of num_experts (8)"),
        ({"n_group": 8}, "n_group is 8; expected a divisor of num_experts (8) with 2 experts or more in a group"),
        ({"topk_group": 5}, "topk_group is 5; expected at most n_group (4)"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok is 5; expected at most the experts of 2 of 4 groups"),
        ({"norm_topk_prob": False}, "norm_topk_prob is False; expected true"),
        ({"norm_head": True}, "norm_head is True; expected false"),
        ({"norm_softmax": True}, "norm_softmax is True; expected false"),
        ({"expert_capacity": 16}, "expert_capacity is 16; expected none"),
        ({"rotary_dim": 8}, "rotary_dim is 8; expected head_dim times partial_rotary_factor (0.5)"),
        ({"first_k_dense_replace": 4}, "first_k_dense_replace is 4; expected at most num_hidden_layers"),
        ({"first_k_dense_replace": -1}, "first_k_dense_replace is -1"),
        ({"routed_scaling_factor": "2.5"}, "routed_scaling_factor is '2.5'"),
        ({"moe_router_enable_expert_bias": 1}, "moe_router_enable_expert_bias is 1; expected true or false"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config is set"),
        ({"use_sliding_window": True, "max_window_layers": 1}, "use_sliding_window is True"),
    ],
)
def test_what_is_wrong_or_not_implemented_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        ling(**changes)
    assert message in str(caught.value)
    assert str(caught.value).startswith("config.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["score_function", "router_type"])
def test_another_router_of_qwen3_is_refused(name: str) -> None:
    assert qwen(**{name: "softmax"}).moe == qwen().moe
    with pytest.raises(CheckpointError, match=f"config.json: {name} is 'tanh'; expected softmax or nothing"):
        qwen(**{name: "tanh"})


def test_qwen3() -> None:
    assert qwen().moe == MoEConfig(num_experts=8, experts_per_token=3, expert_size=20, score="softmax")
    assert not qwen(norm_topk_prob=False).moe.normalise  # pyright: ignore[reportOptionalMemberAccess]
    every_other = qwen(decoder_sparse_step=2, mlp_only_layers=[3]).moe
    assert every_other is not None
    assert every_other.dense_layers == (0, 2, 3)
    renamed = {name: value for name, value in QWEN.items() if name != "num_experts"}
    assert model_config(renamed | {"num_local_experts": 8}, "x") == qwen(), "transformers 5 writes that name"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": None}, "num_experts is missing"),
        ({"num_local_experts": 9}, "num_local_experts is 9; expected num_experts (8), or nothing"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9; expected at most num_experts (8)"),
        ({"norm_topk_prob": None}, "norm_topk_prob is missing; expected true or false"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size is missing"),
        ({"mlp_only_layers": [4]}, "mlp_only_layers is [4]; expected a list of layers, 0 to 3"),
        ({"mlp_only_layers": 1}, "mlp_only_layers is 1"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
    ],
)
def test_bad_fields_of_qwen3_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        qwen(**changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_field_is_written() -> None:
    """Class defaults differ from every release: a written configuration leaves nothing to them."""
    required = set(LING) - {"architectures", "model_type", "bos_token_id", "eos_token_id"}
    from difflm.checkpoints.families import FAMILIES, hf_config

    written = hf_config(FAMILIES["llada2_moe"], ling())
    assert required <= set(written)
    assert written == written | {name: LING[name] for name in required}
    assert hf_experts("none", model_config(QWEN | {"model_type": "qwen3"}, "x")) == {}
