"""Our decoder equals transformers' on tiny random models of each family, on import and after export (fp32)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from difflm.checkpoints.loading import load_model
from difflm.checkpoints.saving import save_model
from tests.checkpoints.tiny import LLAMA3_SCALING, hf_folder, our_logits, their_logits, tokens

LONG = 48  # beyond original_max_position_embeddings of the scaled cases
TOLERANCE = 1e-5
"""Largest difference, relative to the largest logit. Observed over all cases: see `test_report`."""

LLAMA3 = {"rope_parameters": {"rope_theta": 500.0, **LLAMA3_SCALING}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama one kv head, eps": ("llama", {"num_key_value_heads": 1, "rms_norm_eps": 0.1}),
    "llama head_dim": ("llama", {"head_dim": 20}),
    "llama llama3 rope": ("llama", LLAMA3),
    "llama linear rope": ("llama", {"rope_parameters": {"rope_theta": 900.0, "rope_type": "linear", "factor": 3.0}}),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e6}}),
    "qwen3": ("qwen3", {}),
    "qwen3 tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3 biases": ("qwen3", {"attention_bias": True}),
}


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.1, "logits too flat to tell anything"
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "sharded"])
@pytest.mark.parametrize("case", CASES)
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
    scaled = our_logits(load_model(tmp_path / "scaled").model, token_BL)
    plain = our_logits(load_model(tmp_path / "scaled", rope_scaling={"rope_type": "default"}).model, token_BL)
    assert difference(scaled, plain) > 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_no_more_than_transformers(dtype: torch.dtype, tmp_path: Path) -> None:
    """Casts are where Llama has them: our error against float32 is transformers' error."""
    reference = hf_folder(tmp_path / "in", "qwen3", dtype=dtype)
    token_BL = tokens(67)
    exact = our_logits(load_model(tmp_path / "in").model, token_BL)
    ours = our_logits(load_model(tmp_path / "in", dtype=dtype).model, token_BL).float()
    theirs = their_logits(reference, token_BL).float()
    assert (ours - exact).square().mean().sqrt() < 1.2 * (theirs - exact).square().mean().sqrt()


def test_rope_scaling_override_equals_the_same_config(tmp_path: Path) -> None:
    """`load_model(rope_scaling=...)` is the config.json field, and is written out by `save_model`."""
    from transformers import AutoModelForCausalLM

    hf_folder(tmp_path / "in", "llama")
    token_BL = tokens(67, length=LONG)
    loaded = load_model(tmp_path / "in", rope_scaling={"rope_type": "linear", "factor": 4.0})
    assert loaded.config.model.max_positions == 4 * 128
    save_model(loaded, tmp_path / "out")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert exported.config.max_position_embeddings == 4 * 128
    assert difference(our_logits(loaded.model, token_BL), their_logits(exported, token_BL)) < TOLERANCE
    plain = our_logits(load_model(tmp_path / "in").model, token_BL)
    assert difference(our_logits(loaded.model, token_BL), plain) > 0.01


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
