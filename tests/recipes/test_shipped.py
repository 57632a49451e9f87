"""Shipped recipes: their names in any spelling, and what they say about themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from difflm.recipes.shipped import recipe_names, recipe_path, recipe_summary


def test_the_shipped_recipes() -> None:
    assert recipe_names() == [
        "cap",
        "dpo",
        "laptop",
        "laptop-wsd",
        "llada2_flash",
        "llada2_mini",
        "llama3_2_1b",
        "lossless_smollm2",
        "next-token",
        "paper-wsd",
        "qwen3_0_6b",
        "sft",
        "smollm2",
    ]


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("llada2_mini", "llada2_mini"),
        ("llada2-mini", "llada2_mini"),
        ("LLaDA2.mini", "llada2_mini"),
        ("qwen3-0.6b", "qwen3_0_6b"),
        ("Llama-3.2-1B", "llama3_2_1b"),
        ("laptop_wsd", "laptop-wsd"),
        ("sft", "sft"),
    ],
)
def test_names_are_found_in_any_spelling(spelling: str, name: str) -> None:
    path = recipe_path(spelling)
    assert path is not None
    assert path.name == f"{name}.yaml"


@pytest.mark.parametrize("name", ["absent", "../recipes/sft", "sft.yaml", "", "recipes/sft"])
def test_what_is_no_name_is_no_recipe(name: str) -> None:
    assert recipe_path(name) is None


def test_no_two_names_are_spellings_of_one_another() -> None:
    paths = [recipe_path(name) for name in recipe_names()]
    assert [path.stem for path in paths if path] == recipe_names()


@pytest.mark.parametrize("name", recipe_names())
def test_the_first_line_says_what_it_is(name: str) -> None:
    path = recipe_path(name)
    assert path is not None
    assert (path.parent / "__init__.py").is_file(), "part of the package"
    assert Path(path).read_text().startswith("# ")
    assert recipe_summary(name).endswith("."), "one sentence that fits on the line"
    assert len(recipe_summary(name)) <= 120
