"""Our decoder equals transformers' on tiny random models of each family, on import and after export (fp32)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from difflm.checkpoints.loading import load_model
from difflm.checkpoints.saving import save_model
from tests.checkpoints.tiny import LLAMA3_SCALING, YARN_SCALING, hf_folder, our_logits, their_logits, tokens

LONG = 48  # beyond original_max_position_embeddings of the scaled cases
TOLERANCE = 1e-5
"""Largest difference, relative to the largest logit. Observed over all cases: see `test_report`."""

LLAMA3 = {"rope_parameters": {"rope_theta": 500.0, **LLAMA3_SCALING}}


def yarn(**changes: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 500.0, **YARN_SCALING, **changes}}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama one kv head, eps": ("llama", {"num_key_value_heads": 1, "rms_norm_eps": 0.1}),
    "llama head_dim": ("llama", {"head_dim": 20}),
    "llama llama3 rope": ("llama", LLAMA3),
    "llama linear rope": ("llama", {"rope_parameters": {"rope_theta": 900.0, "rope_type": "linear", "factor": 3.0}}),
    "llama rope yarn": ("llama", yarn()),
    "llama rope yarn factor 1": ("llama", yarn(factor=1.0)),
    "llama rope yarn attention_factor": ("llama", yarn(attention_factor=0.6)),
    "llama rope yarn bands": ("llama", yarn(beta_fast=1.0, beta_slow=0.1)),
    "llama rope yarn mscale": ("llama", yarn(mscale=0.707, mscale_all_dim=1.3)),
    "llama rope yarn one mscale": ("llama", yarn(mscale=0.707)),
    "llama rope yarn not truncated": ("llama", yarn(truncate=False, beta_fast=2.0)),
    "llama rope yarn zeros": ("llama", yarn(beta_fast=0, beta_slow=0, mscale=0)),
    "llama rope yarn factor null": ("llama", yarn(factor=None)),
    "mistral": ("mistral", {}),
    "mistral tied, head_dim": ("mistral", {"tie_word_embeddings": True, "head_dim": 20}),
    "mistral wide window": ("mistral", {"sliding_window": 128}),
    "mistral rope yarn": ("mistral", yarn()),
    "mistral rope linear": (
        "mistral",
        {"rope_parameters": {"rope_theta": 900.0, "rope_type": "linear", "factor": 3.0}},
    ),
    "qwen2 rope yarn": ("qwen2", yarn()),
    "qwen3 rope yarn": ("qwen3", yarn()),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e6}}),
    "qwen3": ("qwen3", {}),
    "qwen3 tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3 biases": ("qwen3", {"attention_bias": True}),
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3_moe not normalised, tied": ("qwen3_moe", {"norm_topk_prob": False, "tie_word_embeddings": True}),
    "qwen3_moe a dense layer": ("qwen3_moe", {"num_hidden_layers": 3, "mlp_only_layers": [1]}),
    "qwen3_moe every other layer, one expert": (
        "qwen3_moe",
        {"num_hidden_layers": 4, "decoder_sparse_step": 2, "num_experts_per_tok": 1},
    ),
    "qwen3_moe rope yarn": ("qwen3_moe", yarn()),
}


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.1, "logits too flat to tell anything"
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize(
    ("case", "sharded"), [(case, False) for case in CASES] + [(case, True) for case in CASES if "rope" not in case]
)
def test_logits_equal_on_import_and_after_export(case: str, sharded: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    family, changes = CASES[case]
    reference = hf_folder(tmp_path / "in", family, max_shard_size="20KB" if sharded else "5GB", **changes)
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 1 or not sharded
    token_BL = tokens(67, length=LONG)
    expected = their_logits(reference, token_BL)
    loaded = load_model(tmp_path / "in")
    assert difference(our_logits(loaded.model, token_BL), expected) < TOLERANCE
    save_model(loaded, tmp_path / "out", max_shard_bytes=20_000 if sharded else 10**9)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1 or not sharded
    read: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, output_loading_info=True)
    exported, report = read
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert difference(their_logits(exported.eval(), token_BL), expected) == 0.0
    assert torch.equal(our_logits(load_model(tmp_path / "out").model, token_BL), our_logits(loaded.model, token_BL))


def test_the_cases_are_not_vacuous(tmp_path: Path) -> None:
    """Norms, biases and scaling all matter: resetting one of them moves the logits."""
    token_BL = tokens(67, length=LONG)
    for case, part in (("llama biases", "bias"), ("qwen2", "bias"), ("qwen3", "query_norm"), ("llama", "norm.weight")):
        family, changes = CASES[case]
        hf_folder(tmp_path / case, family, **changes)
        model = load_model(tmp_path / case).model
        before = our_logits(model, token_BL)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if part in name:
                    parameter.fill_(1.0 if "norm" in part else 0.0)
        assert difference(our_logits(model, token_BL), before) > 0.01, case
    hf_folder(tmp_path / "scaled", "llama", **LLAMA3)
    hf_folder(tmp_path / "yarn", "llama", **yarn())
    for name in ("scaled", "yarn"):
        scaled = our_logits(load_model(tmp_path / name).model, token_BL)
        plain = our_logits(load_model(tmp_path / name, rope_scaling={"rope_type": "default"}).model, token_BL)
        assert difference(scaled, plain) > 0.01
    for option in (
        {"attention_factor": 0.6},
        {"beta_fast": 1.0},
        {"mscale": 0.707, "mscale_all_dim": 1.3},
        {"truncate": False},
    ):
        changed = our_logits(load_model(tmp_path / "yarn", rope_scaling=YARN_SCALING | option).model, token_BL)
        assert difference(scaled, changed) > 1e-3, option


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_no_more_than_transformers(dtype: torch.dtype, tmp_path: Path) -> None:
    """Casts are where Llama has them: our error against float32 is transformers' error."""
    reference = hf_folder(tmp_path / "in", "qwen3", dtype=dtype)
    token_BL = tokens(67)
    exact = our_logits(load_model(tmp_path / "in").model, token_BL)
    ours = our_logits(load_model(tmp_path / "in", dtype=dtype).model, token_BL).float()
    theirs = their_logits(reference, token_BL).float()
    assert (ours - exact).square().mean().sqrt() < 1.2 * (theirs - exact).square().mean().sqrt()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 32, "attention_factor": 1.2},
    ],
    ids=["linear", "yarn", "yarn from 32"],
)
def test_rope_scaling_override_equals_the_same_config(scaling: dict[str, Any], family: str, tmp_path: Path) -> None:
    """`load_model(rope_scaling=...)` is the config.json field, and is written out by `save_model`."""
    from transformers import AutoModelForCausalLM

    hf_folder(tmp_path / "in", family)
    token_BL = tokens(67, length=LONG)
    loaded = load_model(tmp_path / "in", rope_scaling=scaling)
    assert loaded.config.model.max_positions == 4 * 128
    save_model(loaded, tmp_path / "out")
    again = load_model(tmp_path / "out")
    assert again.config.model == loaded.config.model
    assert torch.equal(our_logits(again.model, token_BL), our_logits(loaded.model, token_BL))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert exported.config.max_position_embeddings == 4 * 128
    assert difference(our_logits(loaded.model, token_BL), their_logits(exported, token_BL)) < TOLERANCE
    plain = our_logits(load_model(tmp_path / "in").model, token_BL)
    assert difference(our_logits(loaded.model, token_BL), plain) > 0.01
    off = load_model(tmp_path / "out", rope_scaling={"rope_type": "default"})
    assert torch.equal(our_logits(off.model, token_BL), plain), "off is bit-equal"


def test_report(tmp_path: Path, record_property: Any) -> None:
    """State the largest difference over all cases, against both attention paths of transformers (`pytest -s`)."""
    from transformers import AutoModelForCausalLM

    worst = {"sdpa": 0.0, "eager": 0.0}
    token_BL = tokens(67, length=LONG)
    for case, (family, changes) in CASES.items():
        hf_folder(tmp_path / case, family, **changes)
        ours = our_logits(load_model(tmp_path / case).model, token_BL)
        for path in worst:
            reference = AutoModelForCausalLM.from_pretrained(
                tmp_path / case, dtype=torch.float32, attn_implementation=path
            )
            worst[path] = max(worst[path], difference(ours, their_logits(reference.eval(), token_BL)))
    record_property("largest_relative_difference", worst)
    print(f"largest difference to transformers, relative to the largest logit: {worst}")
    assert max(worst.values()) < TOLERANCE
