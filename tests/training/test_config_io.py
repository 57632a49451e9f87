"""Configurations from YAML and overrides: strict, one-line errors, and a dump that loads to the same run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.errors import ConfigError
from difflm.training import config_io
from difflm.training.config import (
    BlockDiffusionConfig,
    CheckpointingConfig,
    DataConfig,
    EmbeddingNoiseConfig,
    LearningRateConfig,
    NextTokenConfig,
    OptimizerConfig,
    StageConfig,
    TrainConfig,
    ValidationConfig,
)

BASE: dict[str, Any] = {
    "model": "m",
    "output": "o",
    "data": {"paths": ["x"]},
    "curriculum": [{"tokens": 5, "block_size": "row"}],
}


def message(tree: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config_io.config_from_tree(tree)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"optimizer": {"learning_ratee": 1e-4}},
            "train.optimizer.learning_ratee: unknown field; did you mean 'learning_rate'? (fields: kind,",
        ),
        ({"objective": {"kind": "block_diffusion", "noisee": 1}}, "train.objective.noisee: unknown field; did you"),
        (
            {"curriculum": [{"token": 5, "block_size": 4}]},
            "train.curriculum[0].token: unknown field; did you mean 'tok",
        ),
        ({"zzzz": 1}, "train.zzzz: unknown field (fields: model, output, data,"),
        (
            {"objective": {"kind": "block_difusion"}},
            "train.objective: unknown kind 'block_difusion'; did you mean 'blo",
        ),
        (
            {"objective": {"noise": "bernoulli"}},
            "train.objective: {'noise': 'bernoulli'}: 'kind' is missing; set it to",
        ),
        ({"objective": {"kind": "next_token", "noise": "bernoulli"}}, "train.objective.noise: unknown field"),
        ({"curriculum": [{"tokens": 5, "block_size": "rows"}]}, "block_size: 'rows' is not allowed; must be a whole"),
        ({"threads": 0}, "train.threads: 0 is not allowed; must be greater than or equal to 1"),
        ({"seed": True}, "train.seed: True is not allowed; must be a whole number"),
        ({"seed": "1"}, "train.seed: '1' is not allowed; must be a whole number"),
        ({"optimizer": {"learning_rate": "fast"}}, "train.optimizer.learning_rate: 'fast' is not allowed"),
        ({"optimizer": {"learning_rate": float("nan")}}, "train.optimizer.learning_rate: nan is not allowed"),
        ({"optimizer": {"betas": [0.9]}}, "train.optimizer.betas[1]: missing; the list needs one more entry"),
        ({"optimizer": None}, "train.optimizer: None is not allowed; must be a mapping of fields"),
        ({"dtype": "float16"}, "train.dtype: 'float16' is not allowed; must be 'float32' or 'bfloat16'"),
        ({"model": ""}, "train.model: '' is not allowed; must be a path, not empty"),
        ({"data": {"paths": "x"}}, "train.data.paths: 'x' is not allowed; must be a list"),
        ({"data": {"paths": ["x"], "row_length": 100}, "curriculum": [{"tokens": 1, "block_size": 32}]}, "96 or 128"),
        ({"curriculum": []}, "train.curriculum: [] is not allowed; must be a list of at least 1 item"),
    ],
)
def test_errors_name_path_value_and_rule(fields: dict[str, Any], expected: str) -> None:
    assert expected in message(BASE | fields)


def test_missing_fields_are_all_named() -> None:
    assert message({"data": {}}) == (
        "train.model: missing; it has no default, set it in the file or by model=... "
        "(wrong as well: train.output, train.data.paths, train.curriculum)"
    )


def test_overrides_reach_nested_fields_lists_and_stages() -> None:
    tree = config_io.override(
        BASE,
        [
            "optimizer.learning_rate=1e-4",
            "optimizer.betas=[0.8, 9e-1]",
            "curriculum=[{tokens: 7, block_size: 4}, {tokens: 8, block_size: 8}]",
            "curriculum.1.tokens=1_000",
            "data.paths=[a, b]",
            "objective={kind: block_diffusion, weighting: uniform}",
        ],
    )
    config = config_io.config_from_tree(tree)
    assert config.optimizer == OptimizerConfig(learning_rate=1e-4, betas=(0.8, 0.9))
    assert config.curriculum == (StageConfig(tokens=7, block_size=4), StageConfig(tokens=1000, block_size=8))
    assert config.data.paths == (Path("a"), Path("b"))
    assert config.objective == BlockDiffusionConfig(weighting="uniform")
    assert BASE["data"]["paths"] == ["x"], "the tree that was given stays as it was"


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("learning_rate", "an override reads field=value"),
        ("=3", "an override reads field=value"),
        ("curriculum.3.tokens=1", "train.curriculum.3: '3' is no entry of this list of 1"),
        ("model.name=x", "train.model.name: cannot be set, train.model is 'm'"),
        ("seed=[1", "train.seed: not valid YAML"),
        ("optimizer={eps: 1, eps: 2}", "key 'eps' stands twice"),
        ("optimizer.lr=1", "train.optimizer.lr: unknown field"),
        ("seed=!!python/object/apply:os.getcwd []", "train.seed: not valid YAML"),
        ("seed=" + "[" * 5000, "train.seed: not valid YAML: nested too deeply"),
        ("seed=2024-01-01", "train.seed: datetime.date(2024, 1, 1) is not allowed; only numbers, strings"),
        ("data.paths=[a, &b [*b]]", "train.data.paths[1][0]: [[...]] is not allowed; only numbers, strings"),
    ],
)
def test_bad_overrides_are_one_line_errors(assignment: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_io.config_from_tree(config_io.override(BASE, [assignment]))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_configuration_are_named(tmp_path: Path) -> None:
    listing = tmp_path / "list.yaml"
    listing.write_text("- 1\n")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    for path in (listing, binary, tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(ConfigError) as caught:
            config_io.load_config(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_python_configurations_are_checked_as_strictly() -> None:
    config = config_io.config_from_tree(BASE)
    assert config_io.checked(config) == config
    with pytest.raises(ConfigError, match=r"train.optimizer.learning_rate: -1.0 is not allowed"):
        config_io.checked(dataclasses.replace(config, optimizer=OptimizerConfig(learning_rate=-1.0)))


counts = st.integers(0, 10**9)
shares = st.floats(0, 0.99)
paths = st.sampled_from(["a", "b/c.jsonl", "../d", "with space: #x", "null", "1e5", "07"]).map(Path)
data = st.builds(
    DataConfig,
    paths=st.lists(paths, min_size=1, max_size=3).map(tuple),
    format=st.sampled_from(["auto", "jsonl", "text"]),
    row_length=st.integers(1, 20).map(lambda factor: 32 * factor),
    fill=st.sampled_from(["eos", "none"]),
    validation_paths=st.lists(paths, max_size=2).map(tuple),
    split_seed=counts,
    shuffle=st.booleans(),
)
diffusion = st.builds(
    BlockDiffusionConfig,
    noise=st.just("bernoulli"),
    weighting=st.sampled_from(["elbo", "uniform"]),
    time_per=st.sampled_from(["block", "sequence"]),
    bandwidth=st.tuples(st.floats(0, 0.4), st.floats(0.5, 1)),
    complementary=st.booleans(),
    ar_weight=st.floats(0, 1e6),
    block_origin=st.sampled_from(["document", "row"]),
)
configs = st.one_of(
    st.tuples(diffusion, st.sampled_from([1, 8, 32, "row"])), st.tuples(st.just(NextTokenConfig()), st.none())
).flatmap(
    lambda pair: st.builds(
        TrainConfig,
        model=paths,
        output=paths,
        data=data,
        objective=st.just(pair[0]),
        curriculum=st.lists(
            st.builds(StageConfig, tokens=st.integers(1, 10**12), block_size=st.just(pair[1])), min_size=2, max_size=4
        ).map(tuple),
        optimizer=st.builds(OptimizerConfig, learning_rate=st.floats(1e-12, 1), betas=st.tuples(shares, shares)),
        lr_schedule=st.builds(
            LearningRateConfig, kind=st.sampled_from(["constant", "linear", "cosine"]), warmup_fraction=shares
        ),
        embedding_noise=st.builds(EmbeddingNoiseConfig, sigma=st.floats(0, 2), stages=st.integers(1, 2)),
        validation=st.builds(ValidationConfig, block_sizes=st.lists(st.integers(1, 64), max_size=4).map(tuple)),
        checkpoint=st.builds(CheckpointingConfig, every_tokens=counts, keep_best=counts),
        seed=counts,
        device=st.sampled_from(["cpu", "cuda:1"]),
        dtype=st.sampled_from(["float32", "bfloat16"]),
        threads=st.one_of(st.none(), st.integers(1, 64)),
    )
)


@given(configs)
@settings(max_examples=40, deadline=None)
def test_a_dump_loads_to_the_equal_configuration(config: TrainConfig) -> None:
    text = config_io.dump_config(config)
    again = config_io.config_from_tree(config_io.parse_yaml(text, where="dump"))
    assert again == config
    assert config_io.dump_config(again) == text


def test_a_dump_names_every_field() -> None:
    tree = config_io.config_to_tree(config_io.config_from_tree(BASE))
    assert list(tree) == [each.name for each in dataclasses.fields(TrainConfig)]
    assert list(tree["data"]) == [each.name for each in dataclasses.fields(DataConfig)]


def test_a_configuration_is_taken_in_any_form(tmp_path: Path) -> None:
    tree = {"model": "m", "output": "o", "data": {"paths": ["d"]}, "curriculum": [{"block_size": 4, "tokens": 8}]}
    config = config_io.config_from_tree(tree)
    (tmp_path / "run.yaml").write_text(config_io.dump_config(config))
    for form in (config, tree, tmp_path / "run.yaml", str(tmp_path / "run.yaml")):
        assert config_io.as_config(form) == config
    with pytest.raises(ConfigError, match=r"train\.seeed"):
        config_io.as_config({**tree, "seeed": 1})
