"""Pairs by the names of a family's files and by ours: exact both ways, and every file that does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from difflm.checkpoints.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from difflm.checkpoints.adapter_names import adapter_layout
from difflm.checkpoints.adapter_saving import save_adapter
from difflm.checkpoints.families import FAMILIES
from difflm.checkpoints.fields import read_json, write_json
from difflm.checkpoints.loading import load_model
from difflm.errors import CheckpointError
from difflm.models.adapters import adaptable_weights
from tests.checkpoints.adapters import BASES, adapted, base_folder, same_adapter

ATTENTION = "base_model.model.model.layers.1.attention"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", BASES)
def test_written_and_read_an_adapter_is_itself_bit_for_bit(name: str, dtype: str, tmp_path: Path) -> None:
    loaded = adapted(base_folder(tmp_path / "base", name), dtype=dtype)
    save_adapter(loaded, tmp_path / "adapter")
    again = load_model(tmp_path / "adapter", dtype=dtype)
    assert same_adapter(again, loaded)
    save_adapter(again, tmp_path / "again")
    for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        assert (tmp_path / "adapter" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


@pytest.mark.parametrize("name", BASES)
def test_every_adaptable_weight_has_its_place(name: str, tmp_path: Path) -> None:
    loaded = load_model(base_folder(tmp_path, name))
    layout = adapter_layout(FAMILIES[loaded.config.family], loaded.config.model)
    assert [weight for place in layout.places for weight in place.weights] == adaptable_weights(loaded.model)
    assert layout.stacked == ()
    fused = [place for place in layout.places if len(place.weights) > 1]
    assert len(fused) == (loaded.config.model.num_layers if name == "llada2_moe" else 0)


def test_names_and_shapes_of_ling_s_fused_and_single_matrices(tmp_path: Path) -> None:
    save_adapter(adapted(base_folder(tmp_path / "base", "llada2_moe")), tmp_path / "adapter")
    found = load_file(tmp_path / "adapter" / ADAPTER_WEIGHTS)
    assert tuple(found[f"{ATTENTION}.query_key_value.lora_A.weight"].shape) == (3, 32)
    assert tuple(found[f"{ATTENTION}.query_key_value.lora_B.weight"].shape) == (96, 3)
    expert = "base_model.model.model.layers.1.mlp.experts.7"
    assert tuple(found[f"{expert}.up_proj.lora_A.weight"].shape) == (3, 32)
    assert tuple(found[f"{expert}.down_proj.lora_B.weight"].shape) == (32, 3)
    assert "base_model.model.model.layers.1.mlp.shared_experts.gate_proj.lora_B.weight" in found
    assert "base_model.model.model.word_embeddings.token_adapter.trainable_tokens_delta" in found
    assert not torch.equal(found[f"{expert}.gate_proj.lora_A.weight"], found[f"{expert}.up_proj.lora_A.weight"])


def broken(folder: Path, change: Any) -> str:
    """Return the message that a changed adapter of a tiny LLaDA2 is refused with."""
    base = base_folder(folder / "base", "llada2_moe")
    save_adapter(adapted(base), folder / "adapter")
    path, raw = folder / "adapter" / ADAPTER_WEIGHTS, read_json(folder / "adapter" / ADAPTER_CONFIG)
    tensors = load_file(path)
    change(tensors, raw)
    save_file(tensors, path)
    write_json(folder / "adapter" / ADAPTER_CONFIG, raw)
    with pytest.raises(CheckpointError) as caught:
        load_model(folder / "adapter")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _drop(name: str) -> Any:
    return lambda tensors, raw: tensors.pop(name)


def _set(name: str, tensor: Tensor) -> Any:
    return lambda tensors, raw: tensors.update({name: tensor})


QKV, ROWS = (
    f"{ATTENTION}.query_key_value",
    "base_model.model.model.word_embeddings.token_adapter.trainable_tokens_delta",
)
EXPERT = "base_model.model.model.layers.2.mlp.experts.3.up_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop(f"{QKV}.lora_B.weight"), f"{QKV}.lora_A.weight is there, but not {QKV}.lora_B.weight"),
        (_drop(f"{EXPERT}.lora_A.weight"), f"but not {EXPERT}.lora_A.weight; copy the adapter again"),
        (_set("base_model.model.lm_head.lora_A.weight", torch.ones(3, 32)), "lm_head.lora_A.weight has no place"),
        (_set("base_model.model.model.layers.9.x", torch.ones(1)), "model.layers.9.x has no place in the base"),
        (_set(f"{QKV}.lora_A.weight", torch.ones(3, 30)), "A [3, 30] and B [96, 3] of model.layers.1.attention.query"),
        (
            _set(f"{QKV}.lora_A.weight", torch.ones(4, 32)),
            "do not fit the base's [96, 32]; it is an adapter of another",
        ),
        (_set(f"{EXPERT}.lora_B.weight", torch.ones(20)), "B [20] of model.layers.2.mlp.experts.3.up_proj do not fit"),
        (_set(f"{QKV}.lora_A.weight", torch.ones(3, 32, dtype=torch.int32)), "is torch.int32; only floating-point"),
        (lambda tensors, raw: raw.update(r=2), "has rank 3, but r is 2 in"),
        (_drop(ROWS), "rows of the embedding are missing, expected [1, 32]"),
        (_set(ROWS, torch.ones(2, 32)), "rows of the embedding are [2, 32], expected [1, 32]"),
        (lambda tensors, raw: raw.update(trainable_token_indices=[67]), "[67] exceed the base's vocab_size (67)"),
        (
            lambda tensors, raw: raw.update(trainable_token_indices=None),
            "rows of the embedding are [1, 32], expected [0",
        ),
        (
            lambda tensors, raw: raw.update(alpha_pattern={"experts.3.up_proj": 2}),
            "gives the experts of layers.1.mlp.experts.gate_up [2.0, 6.0]; give all the same",
        ),
        (lambda tensors, raw: tensors.clear(), "no pair for"),
    ],
)
def test_files_that_do_not_fit_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    assert message in broken(tmp_path, change)


def test_a_lost_layer_is_noticed_by_the_targets(tmp_path: Path) -> None:
    def lose(tensors: dict[str, Tensor], raw: dict[str, Any]) -> None:
        for name in [name for name in tensors if ".layers.2.attention." in name]:
            del tensors[name]

    found = broken(tmp_path, lose)
    assert "no pair for model.layers.2.attention.query_key_value, model.layers.2.attention.dense, which target" in found


def test_stacked_files_have_no_place_for_pairs_of_experts() -> None:
    if "llada2_moe_veomni" not in FAMILIES:
        pytest.skip("no family with stacked experts")
    from difflm.checkpoints.families import model_config
    from tests.checkpoints.tiny import LING

    layout = adapter_layout(FAMILIES["llada2_moe_veomni"], model_config(LING | {"model_type": "llada2_moe"}, "x"))
    assert layout.stacked == tuple(
        f"layers.{layer}.mlp.experts.{part}" for layer in (1, 2) for part in ("gate_up", "down")
    )
    assert not [weight for place in layout.places for weight in place.weights if ".experts." in weight]
