"""Opening checkpoints: what the files are decides, and names and shapes are checked strictly, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from difflm.checkpoints.families import model_config
from difflm.checkpoints.fields import read_json, write_json
from difflm.checkpoints.loading import load_model
from difflm.checkpoints.source import open_checkpoint, parameter_shapes
from difflm.errors import CheckpointError
from tests.checkpoints.tiny import hf_folder, ling_folder
from tests.golden import golden


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_missing_unexpected_and_wrong_shape_are_raised_once(tmp_path: Path) -> None:
    hf_folder(tmp_path / "a", "qwen2")
    path = tmp_path / "a" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.0.self_attn.q_proj.bias"], tensors["model.norm.weight"]
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(1)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(32, 44)
    save_file(tensors, path)
    message = refused(tmp_path / "a")
    assert "missing: model.layers.0.self_attn.q_proj.bias, model.norm.weight" in message
    assert "unexpected: model.layers.2.mlp.up_proj.weight" in message
    assert "wrong shape: model.layers.1.mlp.up_proj.weight is [32, 44], config.json says [44, 32]" in message


def test_biases_that_the_configuration_denies_are_unexpected(tmp_path: Path) -> None:
    hf_folder(tmp_path / "a", "llama", attention_bias=True)
    write_json(tmp_path / "a" / "config.json", read_json(tmp_path / "a" / "config.json") | {"attention_bias": False})
    assert "unexpected: model.layers.0.self_attn.k_proj.bias" in refused(tmp_path / "a")


def test_heads_and_ties(tmp_path: Path) -> None:
    """An untied model needs its head; beside a tied embedding a head is welcome only if it is the same matrix."""
    hf_folder(tmp_path / "a", "llama", tie_word_embeddings=True)
    path, config = tmp_path / "a" / "model.safetensors", tmp_path / "a" / "config.json"
    tensors, raw = load_file(path), read_json(config)
    assert "lm_head.weight" not in tensors
    write_json(config, raw | {"tie_word_embeddings": False})
    assert "missing: lm_head.weight" in refused(tmp_path / "a")
    head = tensors["model.embed_tokens.weight"].clone()
    save_file({**tensors, "lm_head.weight": head}, path)
    assert load_model(tmp_path / "a").model.head.weight.data_ptr() != 0
    write_json(config, raw)
    tied = load_model(tmp_path / "a").model
    assert tied.head.weight is tied.embedding.weight
    head[3, 4] += 1
    save_file({**tensors, "lm_head.weight": head}, path)
    message = refused(tmp_path / "a")
    assert "lm_head.weight differs from model.embed_tokens.weight but tie_word_embeddings is true" in message


def test_recomputed_buffers_of_old_exports_are_ignored(tmp_path: Path) -> None:
    hf_folder(tmp_path / "a", "llama")
    path = tmp_path / "a" / "model.safetensors"
    save_file({**load_file(path), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}, path)
    assert load_model(tmp_path / "a")


def test_parameter_shapes_allocate_nothing() -> None:
    from difflm.models.config import ModelConfig, RopeConfig

    huge = ModelConfig(
        vocab_size=10**6,
        hidden_size=2**14,
        intermediate_size=2**16,
        num_layers=2,
        num_heads=128,
        num_kv_heads=8,
        head_dim=128,
        norm_eps=1e-6,
        rope=RopeConfig(),
        max_positions=10**6,
        tied_embeddings=True,
    )
    shapes = parameter_shapes(huge)
    assert shapes["embedding.weight"] == (10**6, 2**14)
    assert "head.weight" not in shapes


def test_wrong_paths(tmp_path: Path) -> None:
    assert "no such file or folder; expected a local checkpoint (nothing is downloaded)" in refused(tmp_path / "gone")
    assert "no config.json; expected a checkpoint folder or a .gguf file" in refused(tmp_path)
    for name, part in (("a.txt", "not a checkpoint; expected"), ("a.pt", "pickle files are never opened")):
        (tmp_path / name).write_bytes(b"x")
        assert part in refused(tmp_path / name)
    write_json(tmp_path / "config.json", {"model_type": "gpt2"})
    assert "model_type is 'gpt2'; expected one of llama, mistral, qwen2, qwen3, " in refused(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\x80\x04junk")
    assert "config.json: not readable as JSON" in refused(tmp_path)


def test_the_licence_is_read_from_the_card(tmp_path: Path) -> None:
    hf_folder(tmp_path, "llama")
    assert open_checkpoint(tmp_path).licence is None
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: 'mit'\n---\nlicense: no\n")
    assert open_checkpoint(tmp_path).licence == "mit"


def test_layers_for_more_tokens_are_left_out_by_name_and_nothing_else(tmp_path: Path) -> None:
    folder = golden.checkpoint("bailing", tmp_path / "a")
    checkpoint = open_checkpoint(folder)
    parameters = checkpoint.parameters(model_config(checkpoint.raw, "x"))
    assert len(parameters.left_out) == 63
    assert all(name.startswith("model.layers.4.") for name in parameters.left_out)
    assert "model.layers.4.eh_proj.weight" in parameters.left_out
    plain = open_checkpoint(golden.checkpoint("llada2", tmp_path / "b")).parameters(parameters.config)
    assert plain.left_out == ()
    assert all(torch.equal(parameters[name], plain[name]) for name in parameters)
    raw = read_json(folder / "config.json")
    write_json(folder / "config.json", raw | {"num_nextn_predict_layers": 0})
    assert "unexpected: model.layers.4.attention.dense.weight" in refused(folder)


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    folder = ling_folder(tmp_path / "a")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.experts.5.up_proj.weight"], tensors["model.layers.1.mlp.gate.expert_bias"]
    tensors["model.layers.1.mlp.experts.8.up_proj.weight"] = torch.zeros(1)
    save_file(tensors, folder / "model.safetensors")
    message = refused(folder)
    assert "missing: model.layers.2.mlp.experts.5.up_proj.weight, model.layers.1.mlp.gate.expert_bias" in message
    assert "unexpected: model.layers.1.mlp.experts.8.up_proj.weight" in message
