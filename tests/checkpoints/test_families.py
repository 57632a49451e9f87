"""config.json <-> ModelConfig, both spellings; what is not implemented is refused by name."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.checkpoints.families import (
    ALIASES,
    FAMILIES,
    find_family,
    hf_config,
    model_config,
    mtp_layers,
    updated_config,
)
from difflm.checkpoints.rope_fields import rope_config
from difflm.errors import CheckpointError
from difflm.models.config import ModelConfig, MoEConfig, RopeConfig
from tests.checkpoints.tiny import LING, LLAMA, LLAMA3_SCALING, QWEN3_MOE, YARN_SCALING
from tests.checkpoints.tiny import hf_config as transformers_config

KNOWN_TO_TRANSFORMERS = ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe"]


def read(**changes: Any) -> ModelConfig:
    return model_config(LLAMA | changes, "config.json")


def test_defaults_are_those_of_transformers() -> None:
    from transformers import AutoConfig

    for family in KNOWN_TO_TRANSFORMERS:
        window: dict[str, Any] = {"sliding_window": None} if family == "mistral" else {}
        experts = QWEN3_MOE if family == "qwen3_moe" else {}
        given: dict[str, Any] = {**LLAMA, **window, **experts, "num_key_value_heads": 2, "model_type": family}
        theirs = AutoConfig.for_model(**given).to_dict()
        assert model_config(theirs | {"model_type": family}, "x") == model_config(given, "config.json")


def test_both_spellings_of_rope_agree() -> None:
    old = read(rope_theta=500.0, rope_scaling=LLAMA3_SCALING)
    legacy = {("type" if name == "rope_type" else name): value for name, value in LLAMA3_SCALING.items()}
    assert read(rope_parameters={"rope_theta": 500.0, **LLAMA3_SCALING}) == old
    assert read(rope_theta=500.0, rope_scaling=legacy) == old
    assert old.rope == RopeConfig(
        theta=500.0, kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=16
    )
    assert read(rope_theta=7.0, rope_scaling=None).rope == RopeConfig(theta=7.0)
    assert read(rope_parameters={"rope_type": "default", "rope_theta": 7.0}).rope == RopeConfig(theta=7.0)
    assert read(rope_scaling={"type": "linear", "factor": 2}).rope.factor == 2.0


@pytest.mark.parametrize("family", KNOWN_TO_TRANSFORMERS)
def test_transformers_spelling_is_read(family: str) -> None:
    config = transformers_config(family, rope_parameters={"rope_theta": 123.0, **LLAMA3_SCALING})
    ours = model_config(config.to_dict(), "config.json")
    assert (ours.rope.theta, ours.rope.kind) == (123.0, "llama3")
    assert ours.head_dim == (12 if "qwen3" in family else 8)
    assert ours.qkv_bias == (family == "qwen2")
    assert not ours.output_bias
    assert ours.qk_norm == ("qwen3" in family)


ROPES = st.one_of(
    st.builds(RopeConfig, theta=st.sampled_from([1e4, 5e5, 123.5])),
    st.builds(RopeConfig, theta=st.just(1e4), kind=st.just("linear"), factor=st.sampled_from([2.0, 8.0])),
    st.builds(
        RopeConfig,
        theta=st.just(5e5),
        kind=st.just("llama3"),
        factor=st.sampled_from([8.0, 32.0]),
        low_freq_factor=st.sampled_from([1.0, 2.0]),
        high_freq_factor=st.just(4.0),
        original_max_positions=st.sampled_from([16, 8192]),
    ),
    st.builds(
        RopeConfig,
        theta=st.just(1e6),
        kind=st.just("yarn"),
        factor=st.sampled_from([1.0, 4.0]),
        original_max_positions=st.sampled_from([4, 16]),
        beta_fast=st.sampled_from([32.0, 8.0]),
        beta_slow=st.sampled_from([1.0, 2.0]),
        attention_factor=st.sampled_from([None, 1.0, 0.7]),
        mscale=st.sampled_from([None, 0.707]),
        mscale_all_dim=st.sampled_from([None, 1.0]),
        truncate=st.booleans(),
    ),
)


EXPERTS = {
    "none": None,
    "qwen3": MoEConfig(
        num_experts=6, experts_per_token=2, expert_size=20, score="softmax", normalise=False, dense_layers=(1,)
    ),
    "ling": MoEConfig(
        num_experts=8,
        experts_per_token=3,
        expert_size=20,
        score="sigmoid",
        groups=4,
        groups_kept=2,
        expert_bias=True,
        scaling=2.5,
        shared_experts=2,
        shared_size=20,
        dense_layers=(0,),
    ),
}


@settings(max_examples=60, deadline=None)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    rope=ROPES,
    kv=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([8, 12, 128]),
    tied=st.booleans(),
    bias=st.booleans(),
    mlp_bias=st.booleans(),
)
def test_both_ways(
    family: str, rope: RopeConfig, kv: int, head_dim: int, tied: bool, bias: bool, mlp_bias: bool
) -> None:
    known = FAMILIES[family]
    ling = known.experts == "ling"
    config = ModelConfig(
        vocab_size=67,
        hidden_size=32,
        intermediate_size=44,
        num_layers=2,
        num_heads=4,
        num_kv_heads=kv,
        head_dim=head_dim,
        norm_eps=1e-5,
        rope=replace(rope, partial=0.5) if ling else rope,
        max_positions=77,
        qkv_bias=known.attention_bias == "qkv" or (bias and known.attention_bias in ("field", "ling")),
        output_bias=bias and known.attention_bias in ("field", "ling"),
        mlp_bias=mlp_bias and known.reads_mlp_bias,
        qk_norm=known.qk_norm,
        tied_embeddings=tied,
        moe=EXPERTS[known.experts],
    )
    assert model_config(hf_config(known, config), "x") == config


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ["dynamic", "longrope", "su", "mrope", "proportional"])
def test_rope_types_are_refused_by_name(name: str, kind: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {name}\.rope_type is '{kind}'; implemented are default"):
        read(**{name: YARN_SCALING | {"rope_type": kind}})
    with pytest.raises(CheckpointError, match=kind):
        read(**{name: {"type": kind, "factor": 2.0}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mixtral"}, "model_type is 'mixtral'; expected one of llama, mistral, qwen2, qwen3, "),
        ({"model_type": None}, "model_type is missing"),
        ({"model_type": ["llama"]}, "model_type is"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config is set"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters is"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3; expected a divisor of num_attention_heads (4)"),
        ({"hidden_size": 30}, "head_dim is missing"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
    ],
)
def test_bad_fields_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(**changes)
    assert str(caught.value).startswith("config.json: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_sliding_windows_are_refused_only_where_in_use(family: str) -> None:
    window = {"model_type": family, "sliding_window": 8, "num_hidden_layers": 4}
    with pytest.raises(CheckpointError, match="use_sliding_window is True"):
        read(**window, use_sliding_window=True, max_window_layers=2)
    with pytest.raises(CheckpointError, match="layer_types contains sliding_attention"):
        read(**window, layer_types=["full_attention", "sliding_attention"] * 2)
    # The released Qwen files carry a window that is off, or that begins after the last layer.
    assert read(**window, use_sliding_window=False, max_window_layers=0)
    assert read(**window, use_sliding_window=True, max_window_layers=4)
    assert read(**window, layer_types=["full_attention"] * 4)


def test_a_window_of_mistral_is_refused_where_a_context_can_feel_it() -> None:
    def mistral(**changes: Any) -> ModelConfig:
        return read(model_type="mistral", max_position_embeddings=128, **changes)

    expected = "expected null, or the longest context or more (sliding windows are not implemented)"
    with pytest.raises(CheckpointError, match=re.escape(f"config.json: sliding_window is 127; {expected}")):
        mistral(sliding_window=127)
    # MistralConfig's default is 4096, and null is not absent.
    with pytest.raises(CheckpointError, match=re.escape(f"config.json: sliding_window is missing; {expected}")):
        read(model_type="mistral", max_position_embeddings=8192)
    assert read(model_type="mistral", max_position_embeddings=8192, sliding_window=None).max_positions == 8192
    assert mistral() == mistral(sliding_window=128) == mistral(sliding_window=None)
    # Scaling makes the context longer than the window.
    with pytest.raises(CheckpointError, match="sliding_window is 128"):
        mistral(sliding_window=128, rope_scaling=YARN_SCALING | {"factor": 8.0})
    with pytest.raises(CheckpointError, match="layer_types contains sliding_attention"):
        mistral(sliding_window=None, layer_types=["sliding_attention"] * 2)


def test_mistral_has_no_biases_whatever_the_file_says() -> None:
    plain = read(model_type="mistral", sliding_window=None, attention_bias=True, mlp_bias=True)
    assert (plain.qkv_bias, plain.output_bias, plain.mlp_bias, plain.qk_norm) == (False,) * 4


def test_qwen2_ignores_attention_bias_and_llama_reads_it() -> None:
    for bias in (False, True):
        qwen = read(model_type="qwen2", attention_bias=bias)
        assert (qwen.qkv_bias, qwen.output_bias) == (True, False)
    llama = read(attention_bias=True, mlp_bias=True)
    assert (llama.qkv_bias, llama.output_bias, llama.mlp_bias) == (True, True, True)
    assert not read(model_type="qwen3", mlp_bias=True).mlp_bias


def test_an_update_changes_what_differs_and_carries_the_rest() -> None:
    raw = LLAMA | {"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}, "use_cache": True, "note": [1]}
    before = model_config(raw, "x")
    assert updated_config(raw, before, "x") == raw
    grown = updated_config(raw, replace(before, vocab_size=68), "x")
    assert grown == raw | {"vocab_size": 68}
    scaled = updated_config(raw, replace(before, rope=RopeConfig(theta=5.0, kind="linear", factor=2.0)), "x")
    assert "rope_parameters" not in scaled
    assert rope_config(scaled, "x") == RopeConfig(theta=5.0, kind="linear", factor=2.0)
    assert scaled["note"] == [1]


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_other_spellings_of_a_model_type_are_the_same_family(alias: str, name: str) -> None:
    assert find_family(LING | {"model_type": alias}, "x") is FAMILIES[name]
    assert model_config(LING | {"model_type": alias}, "x") == model_config(LING | {"model_type": name}, "x")


def test_layers_for_more_tokens_are_gone_from_every_written_configuration() -> None:
    raw = LING | {"num_nextn_predict_layers": 2}
    assert mtp_layers(raw, "x") == 2
    assert mtp_layers(LING, "x") == 0
    assert updated_config(raw, model_config(raw, "x"), "x") == LING | {"num_nextn_predict_layers": 0}
    with pytest.raises(CheckpointError, match="x: num_nextn_predict_layers is -1"):
        mtp_layers(LING | {"num_nextn_predict_layers": -1}, "x")
