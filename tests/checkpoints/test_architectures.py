"""The published architectures give the published parameter counts, on the meta device."""

from __future__ import annotations

import subprocess
import sys

import pytest

from difflm.checkpoints.architectures import (
    ARCHITECTURES,
    architecture,
    architecture_fields,
    meta_model,
    parameter_counts,
)
from difflm.errors import ConfigError

COUNTS = {
    "smollm2-135m": 134_515_008,
    "qwen3-0.6b": 596_049_920,
    "llama-3.2-1b": 1_235_814_400,
}
BILLIONS = {"mini": (16.256, 15.612, 1.433), "flash": (102.890, 101.602, 6.152)}
"""Total, without embedding and head, active."""


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    model = meta_model(name)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert len(model.layers) == model.config.num_layers == ARCHITECTURES[name]["num_hidden_layers"]
    total = sum(tensor.numel() for tensor in model.stored_tensors().values())
    counts = parameter_counts(model.config)
    assert counts.total == total
    if name in COUNTS:
        assert total == counts.active == COUNTS[name]
        return
    expected = BILLIONS[name.rpartition("-")[2] if "llada" in name else name.split("-")[1]]
    found = (counts.total, counts.total - counts.embedding, counts.active)
    assert tuple(round(count / 1e9, 3) for count in found) == expected
    assert model.config.moe is not None
    assert [type(layer.mlp).__name__ for layer in model.layers] == ["MLP"] + ["MoE"] * (model.config.num_layers - 1)


def test_building_on_the_meta_device_imports_no_compiler() -> None:
    """That takes seconds; the building itself, of every layer of the 100B model, a fraction of one."""
    code = (
        "import sys; from difflm.checkpoints.architectures import meta_model; meta_model('llada2.0-flash'); "
        "print([name for name in ('torch._dynamo', 'torch._inductor', 'sympy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_converted_model_is_the_parent_with_other_fields() -> None:
    for size in ("mini", "flash"):
        assert architecture(f"llada2.0-{size}") == architecture(f"ling-{size}-2.0")


def test_names_are_found_in_any_case_and_the_table_is_not_handed_out() -> None:
    assert architecture("Qwen3-0.6B") == architecture("qwen3-0.6b")
    architecture_fields("qwen3-0.6b")["hidden_size"] = 1
    assert architecture("qwen3-0.6b").hidden_size == 1024


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"architecture is .gpt-2.; expected one of smollm2-135m, qwen3-0\.6b"):
        meta_model("gpt-2")
