"""Engines: what each would decode wrongly is told from the configuration alone."""

from __future__ import annotations

from typing import Any

import pytest

from difflm.checkpoints.config import checkpoint_config
from difflm.checkpoints.engines import ENGINES, shortcomings
from difflm.checkpoints.families import FAMILIES
from tests.checkpoints.tiny import LING, LLAMA, QWEN3_MOE

LLADA2 = LING | {"model_type": "llada2_moe", "vocab_size": 157_184, "mask_token_id": 156_895}
SDAR = LLAMA | {"model_type": "sdar", "vocab_size": 151_936, "mask_token_id": 151_669}
SDAR_MOE = SDAR | QWEN3_MOE | {"model_type": "sdar_moe"}


def told(engine: str, raw: dict[str, Any], **changes: Any) -> tuple[str, ...]:
    raw = raw | changes
    return shortcomings(ENGINES[engine], raw["model_type"], checkpoint_config(raw, {}, None, where="config.json"))


@pytest.mark.parametrize(
    ("raw", "engines"),
    [
        (LLADA2, {"sglang", "dinfer", "vllm"}),
        (LLADA2 | {"model_type": "llada2_moe_veomni"}, {"sglang"}),
        (SDAR, {"sglang", "lmdeploy"}),
        (SDAR_MOE, {"sglang", "lmdeploy"}),
        (LLAMA | {"mask_token_id": 3}, set()),
    ],
)
def test_the_releases_layouts_are_served(raw: dict[str, Any], engines: set[str]) -> None:
    assert {name for name in ENGINES if not told(name, raw)} == engines


@pytest.mark.parametrize(
    ("engine", "raw", "changes", "message"),
    [
        ("sglang", LLADA2, {"mask_token_id": 5}, "mask_token_id is 5; it has 156895 built in for LLaDA2MoeModelLM"),
        ("lmdeploy", SDAR, {"mask_token_id": 5}, "mask_token_id is 5; it has 151669 built in for SDARForCausalLM"),
        ("dinfer", LLADA2, {"use_qk_norm": False}, "use_qk_norm is False; it always normalises queries and keys"),
        ("sglang", LLADA2, {"moe_router_enable_expert_bias": False}, "moe_router_enable_expert_bias is False; its sig"),
        ("sglang", SDAR_MOE, {"mlp_only_layers": [1]}, "layers 1 have no experts; it gives every layer some"),
    ],
)
def test_each_assumption_is_told(engine: str, raw: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    found = told(engine, raw, **changes)
    assert len(found) == 1
    assert found[0].startswith(message)


def test_what_an_engine_does_not_assume_is_no_hindrance() -> None:
    assert told("sglang", LLADA2, use_qk_norm=False) == ()
    assert told("lmdeploy", SDAR_MOE, mlp_only_layers=[1]) == ()


def test_a_command_has_every_value_filled_in() -> None:
    architectures = {family.architecture for family in FAMILIES.values()}
    for engine in ENGINES.values():
        command = engine.command.format(target="folder", block_size=8, threshold=0.9)
        assert "folder" in command
        assert "{" not in command
        assert set(engine.mask_ids) <= architectures
