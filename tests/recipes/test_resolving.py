"""From words to a configuration: names, files, functions of the user, overrides in both spellings, scaled budgets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.errors import ConfigError
from difflm.recipes.resolving import assignments, find_recipe, resolve, scaled
from difflm.recipes.shipped import recipe_names, recipe_path
from difflm.training.config_io import read_tree

MINE = """
from pathlib import Path
from difflm.recipes import smollm2
from difflm.training.config import DataConfig, StageConfig, TrainConfig

STAGES = [{"block_size": 4, "tokens": 100}]

def tree(rows=2):
    return {"model": Path("m"), "output": "o", "data": {"paths": ("d",), "row_length": 64}, "curriculum": STAGES,
            "rows_per_batch": rows}

def config():
    return TrainConfig(model=Path("m"), output=Path("o"), data=DataConfig(paths=(Path("d"),), row_length=64),
                       curriculum=(StageConfig(tokens=100, block_size=4),), recipe="by hand")

def derived(model, data):
    return smollm2(model=model, output="mine", data=data)

CONSTANT = tree()

def bad_length():
    return TrainConfig(model=Path("m"), output=Path("o"), data=DataConfig(paths=(Path("d"),), row_length=1),
                       curriculum=(StageConfig(tokens=100, block_size=1),))

def fails():
    return {}["absent"]

def number():
    return 3

def needs(other):
    return other

def positional(model, /):
    return model
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the user in the working folder."""
    package = tmp_path / "mylab"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "runs.py").write_text(MINE)
    (package / "broken.py").write_text("import no_such_library\n")
    (package / "wrong.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    for name in [each for each in sys.modules if each.split(".")[0] == "mylab"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_functions_return_trees_and_configurations(mine: Path) -> None:
    before = list(sys.path)
    config = resolve("mylab.runs:tree", ["seed=3"])
    assert (config.model, config.data.row_length, config.seed, config.rows_per_batch) == (Path("m"), 64, 3, 2)
    assert config.recipe == "mylab.runs:tree"
    config = resolve("mylab.runs:config", ["--optimizer.kind=muon"], output="elsewhere")
    assert (config.output, config.optimizer.kind, config.recipe) == (Path("elsewhere"), "muon", "by hand")
    assert resolve("mylab.runs:CONSTANT").total_tokens == 100
    assert sys.path == before


def test_functions_receive_what_they_ask_for(mine: Path) -> None:
    config = resolve("mylab.runs:derived", model="given", data=["x"])
    assert (config.model, config.output, config.data.paths) == (Path("given"), Path("mine"), (Path("x"),))
    assert config.recipe == "smollm2"
    shipped = resolve("difflm.recipes:llada2_mini", model="m", output="o", data=["d"])
    assert shipped == resolve("llada2_mini", model="m", output="o", data=["d"])


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("mylab.runs:tre", r"recipe: mylab\.runs:tre: mylab\.runs has no 'tre'; did you mean 'tree'\?"),
        ("mylab.absent:f", r"no module 'mylab\.absent'; install it, or run from the folder that holds it"),
        ("absent:f", r"no module 'absent'; install it"),
        (
            "mylab.broken:f",
            r"cannot be imported: ModuleNotFoundError: No module named 'no_such_library' .*broken\.py:1",
        ),
        ("mylab.wrong:f", r"cannot be imported: ZeroDivisionError: division by zero .*wrong\.py:1"),
        ("mylab.runs:fails", r"recipe: mylab\.runs:fails failed: KeyError: 'absent' .*runs\.py:\d+\)"),
        ("mylab.runs:number", r"returned int; return a TrainConfig or a mapping of fields"),
        ("mylab.runs:derived", r"recipe: mylab\.runs:derived needs model; give --model"),
        ("mylab.runs:needs", r"needs other; give it a default"),
        ("mylab.runs:positional", r"needs model; give --model"),
        ("mylab.runs:bad_length", r"train\.data\.row_length: 1 is not allowed"),
    ],
)
def test_functions_that_cannot_be_used_are_one_line_errors(mine: Path, reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(reference)
    assert "\n" not in str(caught.value)


def test_a_function_that_takes_its_arguments_by_position_only_is_refused(mine: Path) -> None:
    with pytest.raises(ConfigError, match=r"takes model by position only; take it by name"):
        resolve("mylab.runs:positional", model="m")


def test_a_file_and_a_shipped_name_come_before_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").write_text("model: m\noutput: o\ndata: {paths: [d]}\ncurriculum: [{block_size: 4, tokens: 9}]\n")
    assert resolve("a:b").total_tokens == 9
    assert find_recipe("paper_wsd") == recipe_path("paper-wsd")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["seed=1", "data.row_length=8"], ["seed=1", "data.row_length=8"]),
        (["--seed=1", "--data.row_length=8"], ["seed=1", "data.row_length=8"]),
        (
            ["--seed", "1", "x=2", "--optimizer.learning-rate", "1e-4"],
            ["seed=1", "x=2", "optimizer.learning_rate=1e-4"],
        ),
        (["--rows-per-batch=4"], ["rows_per_batch=4"]),
        (
            ["samples.prompts=[--a=b]", "--samples.prompts=[x-y, --z]"],
            ["samples.prompts=[--a=b]", "samples.prompts=[x-y, --z]"],
        ),
        (["--lr_schedule.final_ratio", "-1"], ["lr_schedule.final_ratio=-1"]),
    ],
)
def test_overrides_are_read_in_both_spellings(words: list[str], expected: list[str]) -> None:
    assert assignments(words) == expected


@pytest.mark.parametrize("words", [["--verbose"], ["--verbose", "--seed=1"]])
def test_a_dashed_name_without_a_value_is_no_option(words: list[str]) -> None:
    with pytest.raises(
        ConfigError, match=r"^--verbose: no such option, and no value for a field; write --verbose=value$"
    ):
        assignments(words)


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(recipe_names()), tokens=st.integers(9, 10**9))
def test_scaled_budgets_add_up_and_keep_their_proportions(name: str, tokens: int) -> None:
    path = recipe_path(name)
    assert path is not None
    before = read_tree(path)
    after = scaled(before, tokens)
    old, new = ([stage["tokens"] for stage in tree["curriculum"]] for tree in (before, after))
    assert sum(new) == tokens
    assert min(new) >= 1
    for one, other in zip(old, new, strict=True):
        assert abs(other - one * tokens / sum(old)) <= 1 + (len(old) if other == max(new) else 0)
    interval = before["checkpoint"]["every_tokens"]
    assert after["checkpoint"]["every_tokens"] == max(round(interval * tokens / sum(old)), 1)
    assert before == read_tree(path), "the tree that was given is untouched"


def test_what_cannot_be_scaled_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tokens: 2 is too few for the 9 stages"):
        resolve("llada2_mini", model="m", output="o", data=["d"], tokens=2)
    with pytest.raises(ConfigError, match=r"train\.curriculum: a list of stages"):
        scaled({"curriculum": 3}, 100)
    with pytest.raises(ConfigError, match=r"train\.curriculum: tokens are \['x'\]"):
        scaled({"curriculum": [{"tokens": "x"}]}, 100)


def test_overrides_come_after_the_scaling() -> None:
    config = resolve("smollm2", ["curriculum.0.tokens=5", "--seed=2"], model="m", output="o", data=["d"], tokens=6000)
    assert config.curriculum[0].tokens == 5
    assert (config.curriculum[1].tokens, config.seed) == (200, 2)


def test_a_recipe_without_its_run_specific_fields_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r"train.model: missing.*train.output, train.data.paths"):
        resolve("sft")


def test_recipes_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    assert find_recipe("paper-wsd") == recipe_path("paper-wsd")
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    assert find_recipe(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"
    with pytest.raises(
        ConfigError,
        match=r"'latop-wsd' is neither .*did you mean 'laptop-wsd'\? \(cap, dpo, laptop, laptop-wsd, llada2",
    ):
        find_recipe("latop-wsd")
