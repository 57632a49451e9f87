"""Training recipes that ship with the package, by name and as functions.

A recipe is a configuration of `difflm train` without `model`, `output` and `data.paths`, which each run names.
"""

from __future__ import annotations

from difflm.recipes.functions import (
    Recipe,
    cap,
    dpo,
    laptop,
    laptop_wsd,
    llada2_flash,
    llada2_mini,
    llama3_2_1b,
    lossless_smollm2,
    next_token,
    paper_wsd,
    qwen3_0_6b,
    recipe,
    sft,
    smollm2,
)
from difflm.recipes.shipped import recipe_names, recipe_path, recipe_summary

__all__ = [
    "Recipe",
    "cap",
    "dpo",
    "laptop",
    "laptop_wsd",
    "llada2_flash",
    "llada2_mini",
    "llama3_2_1b",
    "lossless_smollm2",
    "next_token",
    "paper_wsd",
    "qwen3_0_6b",
    "recipe",
    "recipe_names",
    "recipe_path",
    "recipe_summary",
    "sft",
    "smollm2",
]
