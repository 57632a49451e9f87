"""Mixtures equal transformers' under every visibility (fp32).

Ling 2.0 and LLaDA2 against `sarvam_moe`, which loads the same files; Qwen3-MoE against its own class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from difflm.checkpoints.loading import load_model
from difflm.checkpoints.saving import save_model
from difflm.scoring import logits
from tests.checkpoints.tiny import hf_folder, ling_folder, sarvam, tokens

CASES: dict[str, dict[str, Any]] = {
    "bailing_moe": {},
    "llada2_moe": {"model_type": "llada2_moe", "mask_token_id": 60, "block_size": 4},
    "whole heads": {"partial_rotary_factor": 1.0, "rotary_dim": 12},
    "two dense, two shared": {"first_k_dense_replace": 2, "num_shared_experts": 2, "routed_scaling_factor": 1.5},
    "one group": {"n_group": 1, "topk_group": 1},
    "biases": {"use_qkv_bias": False},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
}


def visible(attention: str, length: int) -> Tensor:
    query, key = torch.arange(length)[:, None], torch.arange(length)[None]
    return {"causal": key <= query, "bidirectional": key >= 0, "block": key // 4 <= query // 4}[attention]


def theirs(model: Any, token_BL: Tensor, attention: str) -> Tensor:
    seen = visible(attention, token_BL.shape[1]).expand(token_BL.shape[0], 1, -1, -1)
    with torch.no_grad():
        return model(token_BL, attention_mask=torch.where(seen, 0.0, -torch.inf)).logits


@pytest.mark.parametrize("case", CASES)
def test_logits_equal(case: str, tmp_path: Path) -> None:
    folder = ling_folder(tmp_path / "a", **CASES[case])
    loaded, reference = load_model(folder), sarvam(folder, tmp_path / "oracle")
    token_BL = tokens(60, length=46)
    for attention in ("causal", "block", "bidirectional"):
        ours = logits(loaded, token_BL, attention=attention, block_size=4)  # pyright: ignore[reportArgumentType]
        expected = theirs(reference, token_BL, attention)
        assert expected.std() > 0.1
        assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-5, attention
    save_model(loaded, tmp_path / "out", max_shard_bytes=40_000)
    exported = sarvam(tmp_path / "out", tmp_path / "oracle of out")
    assert torch.equal(theirs(exported, token_BL, "causal"), theirs(reference, token_BL, "causal"))


QWEN3_MOE: dict[str, dict[str, Any]] = {
    "qwen3_moe": {},
    "not normalised": {"norm_topk_prob": False},
    "a dense layer": {"num_hidden_layers": 3, "mlp_only_layers": [1]},
}


@pytest.mark.parametrize("case", QWEN3_MOE)
def test_qwen3_moe_is_equal(case: str, tmp_path: Path) -> None:
    reference = hf_folder(tmp_path, "qwen3_moe", **QWEN3_MOE[case])
    loaded, token_BL = load_model(tmp_path), tokens(67, length=46)
    found: list[Tensor] = []
    for attention in ("causal", "block", "bidirectional"):
        ours = logits(loaded, token_BL, attention=attention, block_size=4)  # pyright: ignore[reportArgumentType]
        found.append(theirs(reference, token_BL, attention))
        assert found[-1].std() > 0.1
        assert float((ours - found[-1]).abs().max() / found[-1].abs().max()) < 1e-5, attention
    assert all(not torch.allclose(found[0], other, atol=1e-3) for other in found[1:]), "the oracle sees the mask"
