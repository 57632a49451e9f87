"""Plans of parameters: layer-wise decay, groups, freezing, tied names, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from difflm.errors import ConfigError
from difflm.models.adapters import AdapterSite, attach_adapter
from difflm.models.config import MoEConfig
from difflm.models.transformer import Transformer
from difflm.training.config_optimizer import OptimizerConfig, ParameterGroupConfig
from difflm.training.parameters import ParameterPlan, plan_parameters
from tests.decode.tiny import architecture


def plans(config: OptimizerConfig, *, layers: int = 2, tied: bool = False) -> dict[str, ParameterPlan]:
    model = Transformer(replace(architecture(), num_layers=layers, tied_embeddings=tied))
    return {plan.names[0]: plan for plan in plan_parameters(model, config, mask_id=12)}


def test_every_parameter_is_planned_once() -> None:
    made = plans(OptimizerConfig(weight_decay=0.1))
    model = Transformer(architecture())
    assert list(made) == [name for name, _ in model.named_parameters()]
    for name, plan in made.items():
        inside = name.startswith("layers.") and plan.parameter.dim() > 1
        assert (plan.matrix, plan.weight_decay) == (inside, 0.1 if inside else 0.0), name
        assert (plan.frozen, plan.lr_scale) == (False, 1.0)


def test_experts_are_stacks_of_matrices_and_gate_and_up_are_two() -> None:
    moe = MoEConfig(num_experts=4, experts_per_token=2, expert_size=6, score="sigmoid", expert_bias=True)
    model = Transformer(replace(architecture(), moe=moe))
    made = {plan.names[0]: plan for plan in plan_parameters(model, OptimizerConfig(kind="muon", weight_decay=0.1))}
    parts = {name.removeprefix("layers.1.mlp."): made[name].parts for name in made if name.startswith("layers.1.mlp.")}
    assert parts == {"router.weight": 1, "experts.gate_up": 2, "experts.down": 1}
    assert all(made[f"layers.1.mlp.{name}"].matrix for name in parts)
    assert not any("expert_bias" in name for name in made), "no gradient reaches it"


def test_layer_decay_counts_layers_below_the_last() -> None:
    made = plans(OptimizerConfig(layer_decay=0.5), layers=3)
    assert made["norm.weight"].lr_scale == made["head.weight"].lr_scale == 1.0
    scales = [made[f"layers.{layer}.mlp.up.weight"].lr_scale for layer in range(3)]
    assert scales == [0.25, 0.5, 1.0]
    assert made["layers.0.mlp_norm.weight"].lr_scale == 0.25
    assert made["embedding.weight"].lr_scale == 0.125


def test_the_first_group_that_matches_counts_and_multiplies_the_layer() -> None:
    groups = (
        ParameterGroupConfig(pattern="layers.0.*", lr_scale=0.1),
        ParameterGroupConfig(pattern="*.mlp.*", lr_scale=3.0, weight_decay=0.7),
        ParameterGroupConfig(pattern="norm.weight", weight_decay=0.2),
    )
    made = plans(OptimizerConfig(groups=groups, layer_decay=0.5, weight_decay=0.1))
    assert made["layers.0.mlp.up.weight"].lr_scale == pytest.approx(0.05)
    assert made["layers.0.mlp.up.weight"].weight_decay == 0.1
    assert made["layers.1.mlp.up.weight"].lr_scale == 3.0
    assert made["layers.1.mlp.up.weight"].weight_decay == 0.7
    assert made["norm.weight"].weight_decay == 0.2
    assert made["layers.1.attention.query.weight"].lr_scale == 1.0


def test_patterns_are_case_sensitive_and_know_ranges() -> None:
    made = plans(OptimizerConfig(freeze=("layers.[0-1].mlp.*",)), layers=3)
    assert [made[f"layers.{layer}.mlp.up.weight"].frozen for layer in range(3)] == [True, True, False]
    with pytest.raises(ConfigError, match=r"'Layers\.0\.\*' matches no parameter; did you mean 'layers\.0\.\*'\?"):
        plans(OptimizerConfig(freeze=("Layers.0.*",)))


@pytest.mark.parametrize("pattern", ["head.weight", "embedding.*"])
def test_one_of_a_tied_pair_freezes_both(pattern: str) -> None:
    made = plans(OptimizerConfig(freeze=(pattern,)), tied=True)
    assert made["embedding.weight"].names == ("embedding.weight", "head.weight")
    assert made["embedding.weight"].frozen
    assert "head.weight" not in made
    apart = plans(OptimizerConfig(freeze=(pattern,)))
    assert [name for name, plan in apart.items() if plan.frozen] == [f"{pattern.split('.')[0]}.weight"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            OptimizerConfig(freeze=("embedding.*", "layer.0.*")),
            r"^train\.optimizer\.freeze\[1\]: 'layer\.0\.\*' matches no parameter; did you mean 'layers\.0\.\*'\?$",
        ),
        (
            OptimizerConfig(groups=(ParameterGroupConfig(pattern="*.mpl.*"),)),
            r"^train\.optimizer\.groups\[0\]\.pattern: '\*\.mpl\.\*' matches no parameter; did you mean '\*\.mlp\.\*'",
        ),
        (
            OptimizerConfig(freeze=("lm_head.weight",)),
            r"freeze\[0\]: 'lm_head\.weight' matches no parameter; did you mean 'head\.weight'\?",
        ),
        (OptimizerConfig(freeze=("*",)), r"^train\.optimizer\.freeze: \['\*'\] freezes everything; leave something"),
        (
            OptimizerConfig(kind="muon", freeze=("layers.*.mlp.*", "layers.*.attention.*")),
            r"^train\.optimizer\.kind: 'muon' has no matrix to update, .* freezes all; set kind: adamw$",
        ),
        (
            OptimizerConfig(freeze=("embedding.*",), mask_row_lr_scale=15.0),
            r"^train\.optimizer\.mask_row_lr_scale: 15\.0 has no effect on a frozen embedding; set it to 1$",
        ),
    ],
)
def test_what_has_no_effect_is_refused_in_one_line(config: OptimizerConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        plans(config)
    assert "\n" not in str(caught.value)


def test_of_a_model_with_an_adapter_only_the_adapter_learns() -> None:
    moe = MoEConfig(num_experts=4, experts_per_token=2, expert_size=6, score="sigmoid", dense_layers=(0,))
    model = Transformer(replace(architecture(), moe=moe))
    names = ("layers.0.attention.query", "layers.1.mlp.experts.gate_up", "layers.1.mlp.experts.down")
    sites = [AdapterSite(weights=(name,), rank=2, alpha=4.0) for name in names]
    attach_adapter(model, sites, token_ids=(12,))
    config = OptimizerConfig(
        kind="muon",
        weight_decay=0.1,
        layer_decay=0.5,
        mask_row_lr_scale=3.0,
        freeze=("*.down_lora.*",),
        groups=(ParameterGroupConfig(pattern="*.lora.a", lr_scale=10.0),),
    )
    made = {plan.names[0]: plan for plan in plan_parameters(model, config, mask_id=12)}
    found = {
        name: (plan.matrix, plan.parts, plan.lr_scale, plan.weight_decay)
        for name, plan in made.items()
        if not plan.frozen
    }
    assert found == {
        "token_rows.weight": (False, 1, 0.25 * 3.0, 0.0),
        "layers.0.attention.query.lora.a": (True, 1, 0.5 * 10.0, 0.1),
        "layers.0.attention.query.lora.b": (True, 1, 0.5, 0.1),
        "layers.1.mlp.experts.gate_up_lora.a": (True, 2, 1.0, 0.1),
        "layers.1.mlp.experts.gate_up_lora.b": (True, 2, 1.0, 0.1),
    }
    with pytest.raises(ConfigError, match=r"train\.optimizer\.freeze: .* freezes everything"):
        plan_parameters(model, OptimizerConfig(freeze=("*lora*", "token_rows.*")))
