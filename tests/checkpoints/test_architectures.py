"""The published architectures give the published parameter counts, on the meta device."""

from __future__ import annotations

import pytest

from difflm.checkpoints.architectures import ARCHITECTURES, architecture, architecture_fields, meta_model
from difflm.errors import ConfigError

COUNTS = {
    "smollm2-135m": 134_515_008,
    "qwen3-0.6b": 596_049_920,
    "llama-3.2-1b": 1_235_814_400,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    model = meta_model(name)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert len(model.layers) == model.config.num_layers == ARCHITECTURES[name]["num_hidden_layers"]
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name]


def test_names_are_found_in_any_case_and_the_table_is_not_handed_out() -> None:
    assert architecture("Qwen3-0.6B") == architecture("qwen3-0.6b")
    architecture_fields("qwen3-0.6b")["hidden_size"] = 1
    assert architecture("qwen3-0.6b").hidden_size == 1024


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="architecture is 'gpt-2'; expected one of smollm2-135m, qwen3-0.6b"):
        meta_model("gpt-2")
