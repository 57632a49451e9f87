"""adapter_config.json: what is read, what is refused by its field, and which modules a written one names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from difflm.checkpoints.adapter_config import adapter_config, is_adapter, read_adapter_config, target_modules
from difflm.checkpoints.fields import write_json
from difflm.errors import CheckpointError

PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "base"}


def read(folder: Path, **changes: Any) -> Any:
    write_json(folder / "adapter_config.json", PLAIN | changes)
    return read_adapter_config(folder)


def test_defaults_and_what_peft_writes(tmp_path: Path) -> None:
    from peft import LoraConfig

    told = read(tmp_path)
    assert (told.rank, told.alpha, told.stabilised, told.token_ids, told.targets) == (4, 8.0, False, (), None)
    theirs = LoraConfig(
        r=8,
        lora_alpha=16,
        use_rslora=True,
        lora_dropout=0.1,
        target_modules=["q_proj", "v_proj"],
        alpha_pattern={"q_proj": 3},
        trainable_token_indices={"embed_tokens": [7, 5]},
        base_model_name_or_path="org/base",
        revision="a" * 40,
    )
    theirs.save_pretrained(str(tmp_path))
    told = read_adapter_config(tmp_path)
    assert (told.base, told.revision, told.rank, told.stabilised) == ("org/base", "a" * 40, 8, True)
    assert told.targets is not None
    assert set(told.targets) == {"q_proj", "v_proj"}
    assert told.token_ids == (7, 5), "their order is that of the rows"
    assert [told.alpha_of(f"model.layers.0.self_attn.{name}") for name in ("q_proj", "v_proj")] == [3.0, 16.0]
    assert told.alpha_of("model.layers.0.self_attn.seq_proj") == 16.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; expected LORA"),
        ({"bias": "all"}, "bias is 'all'; expected none"),
        ({"use_dora": True}, "use_dora is True; expected absent"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is"),
        ({"something_new": 3}, "something_new is 3; expected absent"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'; expected true, false or gaussian"),
        ({"target_parameters": ["gate_up_proj"]}, "target_parameters is ['gate_up_proj']; expected null"),
        ({"r": 0}, "r is 0; expected an integer of at least 1"),
        ({"lora_alpha": 0}, "lora_alpha is 0; expected a positive number"),
        ({"lora_alpha": None}, "lora_alpha is missing"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'; expected true or false"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path is 3; expected a string"),
        ({"alpha_pattern": {".*q_proj": 3}}, "alpha_pattern names '.*q_proj'; only names of modules"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern: q_proj is -1; expected a positive number"),
        ({"alpha_pattern": [1]}, "alpha_pattern is [1]; expected an object"),
        ({"trainable_token_indices": [1, 1]}, "trainable_token_indices is [1, 1]; expected token ids"),
        ({"trainable_token_indices": {"a": [1], "b": [2]}}, "trainable_token_indices is"),
        ({"trainable_token_indices": [-1]}, "trainable_token_indices is [-1]"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_its_field(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, **changes)
    assert message in str(caught.value)
    assert "adapter_config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_with_a_whole_checkpoint_is_no_adapter(tmp_path: Path) -> None:
    read(tmp_path)
    assert is_adapter(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert not is_adapter(tmp_path)


EVERY = [
    *(f"model.layers.{layer}.attention.{part}" for layer in range(12) for part in ("query_key_value", "dense")),
    "model.layers.0.mlp.down_proj",
    *(f"model.layers.{layer}.mlp.shared_experts.down_proj" for layer in range(1, 12)),
    *(f"model.layers.{layer}.mlp.experts.{expert}.down_proj" for layer in range(1, 12) for expert in range(11)),
]


@pytest.mark.parametrize(
    "chosen",
    [
        [name for name in EVERY if "attention" in name],
        [name for name in EVERY if "experts." in name and "shared" not in name],
        [name for name in EVERY if "shared" in name or "dense" in name],
        [name for name in EVERY if ".1." in name],
        [name for name in EVERY if name.startswith("model.layers.1.")],
        EVERY,
        EVERY[:1],
    ],
)
def test_target_modules_name_exactly_the_modules_by_peft_s_rule(chosen: list[str]) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    named = target_modules(chosen, EVERY)
    config = LoraConfig(target_modules=named)
    assert [name for name in EVERY if check_target_module_exists(config, name)] == chosen
    assert isinstance(named, list) or len(named) < 80 * len(chosen)


def test_last_names_are_used_where_they_say_it() -> None:
    assert target_modules([name for name in EVERY if "attention" in name], EVERY) == ["dense", "query_key_value"]
    experts = [name for name in EVERY if "experts." in name and "shared" not in name]
    assert target_modules(experts, EVERY) == r"model\.layers\.\d+\.mlp\.experts\.\d+\.down_proj"


def test_exceptions_of_rank_and_alpha_are_named() -> None:
    pairs = {"a.q_proj": (4, 8.0), "a.k_proj": (4, 6.5), "a.v_proj": (2, 8.0)}
    raw = adapter_config(
        base="b", revision=None, pairs=pairs, every=list(pairs), stabilised=False, token_rows=("embed_tokens", (3,))
    )
    assert (raw["r"], raw["lora_alpha"]) == (4, 8)
    assert isinstance(raw["lora_alpha"], int)
    assert (raw["rank_pattern"], raw["alpha_pattern"]) == ({"a.v_proj": 2}, {"a.k_proj": 6.5})
    assert raw["trainable_token_indices"] == {"embed_tokens": [3]}
    assert re.fullmatch("LORA", raw["peft_type"])
